"""Metrics: what observers hear, as the counters, gauges and histograms of other libraries.

It must know no view. No label is ever of a client: there are as many of those as clients like.
"""
