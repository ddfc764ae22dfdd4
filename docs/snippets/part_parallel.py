import trio_parallel
import trioserver

from processes import count_primes


class Answers(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            below = int(line)
            if below < 100:  # not worth the way to another process and back
                count = count_primes(below)
            else:
                count = await trio_parallel.run_sync(count_primes, below, kill_on_cancel=True)
            await self.wfile.write(b"%d\n" % count)
