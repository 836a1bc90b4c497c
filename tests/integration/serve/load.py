"""Clients that ask one server over and over, and compare each answer with the right one."""

import threading
import time

import httpx2
import openai


class Load:
    """Clients that ask again and again, and what became of each request."""

    def __init__(self, served, clients):
        self.outcomes = []  # (when it ended, what it was)
        self._served, self._is_over = served, threading.Event()
        names = [name for name, prompt in served.zoo.expected if prompt == self.prompt()]
        self._threads = [
            threading.Thread(target=self._ask, args=(names[number % 8],))
            for number in range(clients)
        ]

    def prompt(self):
        return next(iter(self._served.zoo.expected))[1]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()

    def _ask(self, name):
        expected = self._served.zoo.expected[name, self.prompt()]
        while not self._is_over.is_set():
            try:
                found = self._served.answer(name, stream=True)
                outcome = "right" if found == expected else f"wrong: {found}"
            except openai.APIStatusError as error:
                after = error.response.headers.get("retry-after")
                outcome = f"{error.status_code} {error.code}{' again' if after else ''}"
                time.sleep(0.5)
            except openai.APIError as error:  # in a stream
                outcome = f"stream {error.code}"
            except httpx2.HTTPError as error:
                outcome = f"cut: {error!r}"
            self.outcomes.append((time.monotonic(), outcome))
