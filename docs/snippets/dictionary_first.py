import trio


async def look_up(stream, word, patience=60):
    """Ask a dictionary server for a word; None if there is no answer."""
    await stream.send_all(word.encode() + b"\n")
    with trio.move_on_after(patience):
        answer = await stream.receive_some()
        return answer.decode().strip() or None
