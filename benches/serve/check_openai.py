"""Drives `temper serve` with the `openai` client: models, both kinds of completions, streams, errors.

    python check_openai.py --url http://127.0.0.1:8000 --name MODEL
"""

import argparse

import openai


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    client = openai.OpenAI(base_url=f"{args.url}/v1", api_key="none", max_retries=0)
    assert args.name in [model.id for model in client.models.list()]
    assert client.models.retrieve(args.name).id == args.name

    chat = dict(model=args.name, messages=[{"role": "user", "content": "Name a color."}], max_tokens=12, seed=4, temperature=0.8)
    whole = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2, n=2)
    assert len(whole.choices) == 2 and whole.usage.completion_tokens >= 2
    for choice in whole.choices:
        tokens = choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    pieces = list(client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    assert pieces[-1].usage.completion_tokens > 0 and pieces[0].choices[0].delta.role == "assistant"

    text = dict(model=args.name, prompt="The capital of France is", max_tokens=5, temperature=0)
    plain = client.completions.create(**text, logprobs=1)
    assert len(plain.choices[0].logprobs.tokens) == plain.usage.completion_tokens
    echoed = client.completions.create(**text, logprobs=1, echo=True)
    assert echoed.choices[0].text == text["prompt"] + plain.choices[0].text
    shown = echoed.choices[0].logprobs
    assert shown.token_logprobs[0] is None and len(shown.tokens) == len(shown.text_offset)
    assert "".join(shown.tokens) == echoed.choices[0].text, shown.tokens
    streamed = "".join(piece.choices[0].text for piece in client.completions.create(**text, stream=True))
    assert streamed == plain.choices[0].text
    stopped = client.completions.create(**{**text, "stop": [plain.choices[0].text[1:3]]})
    assert stopped.choices[0].finish_reason == "stop" and stopped.choices[0].text == plain.choices[0].text[:1]

    for wrong, kind in [
        (dict(model="nothing-like-it"), openai.NotFoundError),
        (dict(n=0), openai.BadRequestError),
        (dict(extra_body={"temperatur": 1}), openai.BadRequestError),
        (dict(max_tokens=10_000_000), openai.BadRequestError),
    ]:
        try:
            client.completions.create(**{**text, **wrong})
        except kind as error:
            assert error.body["message"], error
        else:
            raise AssertionError(f"{wrong} was taken")
    print("the openai client:", openai.__version__, "all well")


if __name__ == "__main__":
    main()
