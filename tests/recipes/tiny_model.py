"""Writes a Llama of 20,000 weights with random values, and a tokenizer of whole words, as transformers loads them.

A script for the interpreter that has torch: `python tiny_model.py FOLDER [tools]`; with `tools` its chat template
knows tools and calls of them.
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)

WITH_TOOLS = (
    "{% if tools %}<s> tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}</s> {% endif %}"
    "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] or '' }} "
    "{% for call in message.tool_calls or [] %}{{ call.function.name }} "
    "{% for key, value in call.function.arguments.items() %}{{ key }} {{ value }} {% endfor %}{% endfor %}"
    "</s> {% endfor %}{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def main(folder: str, template: str = TEMPLATE) -> None:
    """The words are those that the tests use, and the marks of the template."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "user", "assistant", "red", "green", "blue", "stop", "go",
             "tools", "switch", "lamp", "to"]  # fmt: skip
    tokens = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        tie_word_embeddings=True,
        initializer_range=0.2,  # random weights say nothing, but they must be large enough to be steered
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], WITH_TOOLS if sys.argv[2:] == ["tools"] else TEMPLATE)
