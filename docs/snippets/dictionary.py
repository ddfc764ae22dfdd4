import trio


async def look_up(stream, word, patience=60):
    """Ask a dictionary server for a word; None if there is no answer."""
    await stream.send_all(word.encode() + b"\n")
    answer = b""
    with trio.move_on_after(patience):
        while not answer.endswith(b"\n"):
            portion = await stream.receive_some()
            if not portion:
                return None
            answer += portion
        return answer.decode().strip()
