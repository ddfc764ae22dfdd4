from trioserver.testing import Slice, expect, reply

import dictionary
from dictionary_first import look_up
from dictionary_test import French


async def test_unknown_word(trio_server):
    server = await trio_server(French)
    stream = await server.connect()
    assert await look_up(stream, "cow") is None


async def test_in_pieces(trio_server):
    server = await trio_server(French, faults=[Slice(1)])
    stream = await server.connect()
    assert await look_up(stream, "dog") == "chien"


async def test_two_words(scripted_server):
    server = await scripted_server(expect(b"cat dog\n"), reply(b"chat chien\n"))
    stream = await server.connect()
    await dictionary.look_up(stream, "cat, dog")


async def test_no_end(trio_server):
    server = await trio_server(French, guard=1)
    stream = await server.connect()
    await stream.send_all(b"cat")
    await stream.receive_some()
