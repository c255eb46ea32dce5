"""The process that gets killed: judge a manifest with two real clients against loopback servers.

Arguments: manifest, cache folder, run folder, Gemini URL, OpenAI URL.
"""

from __future__ import annotations

import sys

from isr.judges.gemini import GeminiJudge
from isr.judges.openai import OpenAIJudge

import isr


def main(manifest: str, cache: str, out: str, gemini: str, openai: str) -> None:
    judges = [
        GeminiJudge("gemini-3.8-flash", base_url=gemini, api_key="loopback-key-0123456789"),
        OpenAIJudge("gpt-5.2", base_url=openai, api_key="loopback-key-0123456789"),
    ]
    isr.evaluate(manifest, judges=judges, cache=cache, progress=False).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
