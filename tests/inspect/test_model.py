"""A model opened for reading refuses what it cannot read."""

import pytest

import glassmoe
from glassmoe.text.tokens import train_tokenizer
from glassmoe.tracing.prompts import read_prompt
from text_files import made_up_texts


def test_a_token_that_was_added_to_the_tokenizer_alone_is_refused() -> None:
    from tokenizers import AddedToken, Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer.from_str(train_tokenizer(made_up_texts(40), 280))
    words.add_tokens([AddedToken("<new>", special=False)])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 280}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))
    opened = glassmoe.load((model, PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|endoftext|>")))
    assert len(opened.features("the cat", layer=0).tokens) > 2
    for read in (opened.tokenize, opened.features, opened.generate):
        with pytest.raises(ValueError, match=r"token '<new>' \(id 280\), but llama-\w+ reads ids below 280; leave"):
            read("the <new> cat")
    with pytest.raises(ValueError, match=r"token '<new>' \(id 280\), but llama-\w+ reads ids below 280; leave"):
        glassmoe.steer(opened, layer=0, feature=1, add=1.0, prompt="the <new> cat", tokens=2)
    kind = opened.subject.kind()
    with pytest.raises(ValueError, match=r"token '<new>' \(id 280\)"):
        read_prompt(opened.subject, kind, "the <new> cat")
    with pytest.raises(ValueError, match="token id 280; expected ids from 0 to 279"):
        read_prompt(opened.subject, kind, [1, 280])
