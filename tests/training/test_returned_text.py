"""A text of the teacher that cannot be used is sent back, cut to a sensible length."""

from hypothesis import given
from hypothesis import strategies as st

from rpo_kit.training.teachers import TOKENS, retry_conversation

PROMPT = [{"role": "user", "content": "Write a trajectory."}]


@given(st.text(max_size=TOKENS * 8))
def test_a_text_of_the_requested_length_is_sent_back_in_full(text):
    first, own, again = retry_conversation(PROMPT, text, "no tags")
    assert first == PROMPT[0]
    assert own == {"role": "assistant", "content": text}
    assert again["role"] == "user"
    assert "no tags" in again["content"]


def test_a_text_of_megabytes_is_cut():
    own = retry_conversation(PROMPT, "word " * 10**6, "no tags")[1]["content"]
    assert own.startswith("word word ")
    assert own.endswith(" …")
    assert len(own) <= TOKENS * 12
