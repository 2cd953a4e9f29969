"""What `LLMServer` is made of: the shapes of three APIs, what they share, and the sockets.

- `model`: what is asked, and the reply, in no API's words; `tools`: which tool it calls, and how.
- `chat`, `responses`, `anthropic`, `google`: one API each, its requests, answers and events.
- `library`: what an API lists, embeds and stores; `errors`: how each API says no.
- `answer`: a reply on its way to a client that may leave.
- `counts`: what the server has seen; `sockets`, `serving`: where it sees it.
"""
