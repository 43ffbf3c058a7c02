"""Tests of token ids against OpenAI's tokenizer, sentencepiece and Gemma's tokenizer."""

import json
import re
import shutil
import string
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_bpe import OpenAIBPE
from random_checkpoints import clip_config, save_siglip_tokenizer, siglip_config
from record_oracles import TEXTS, recorded

from bliss_jax.models.checkpoint import read_config
from bliss_jax.models.tokenize import load_tokenizer, lower_case

HARD = (
    "a photo of a cat",
    "",
    "   ",
    "Déjà vu, CAFÉ naïve",
    "e\u0301te\u0301 a\u0300\u0301\u0302",
    "ΟΔΟΣ ΣΟΦΟΣ İstanbul ǅ ẞ",
    "👩‍👩‍👧‍👦 emoji 🏳️‍🌈",
    "&lt;b&gt; &amp;amp;lt; &eacute; &#x1F600; &nosuchentity;",
    "it's we'll they're I'VE 'd o'clock ''s's",
    "2024-01-02 ½ ² Ⅷ ١٢٣",
    " tab\there\nnew\r\nline\u00a0no-break\u3000wide\u2003em ",
    "!!!???...;;; #@$%^&*()_+",
    "<|endoftext|> inside <|startoftext|>",
    "pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 70,
    "日本語 テキスト 한국어 العربية हिन्दी",
    "ﬁ \u201ccurly\u201d \u2018quotes\u2019 … — zero\u200bwidth \ufeff",
    "snake_case camelCase \x00\x01 \x7f\x85",
)


@pytest.fixture(scope="module")
def clip(shared, tmp_path_factory):
    """Returns OpenAI's tokenizer in Hugging Face's format, the oracle with OpenAI's file, and a directory."""
    directory = tmp_path_factory.mktemp("clip")
    files = shared / "data" / "clip_bpe"
    shutil.copy(files / "hf_vocab.json", directory / "vocab.json")
    shutil.copy(files / "hf_merges.txt", directory / "merges.txt")
    config = clip_config(text={"vocab_size": 49408, "eos_token_id": 49407})
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory, read_config(directory, "float32"))
    return tokenizer, OpenAIBPE(files / "bpe_simple_vocab_16e6.txt.gz"), directory


def assert_openai_ids(clip, text):
    tokenizer, oracle, _ = clip
    expected = oracle.encode(text)
    found = tokenizer([text], truncate=True)[0].tolist()
    if len(expected) > 77:
        expected = [*expected[:76], 49407]
    assert found == expected + [tokenizer.backend.pad_token_id] * (77 - len(expected))


@pytest.mark.parity
@pytest.mark.shared_data
@pytest.mark.parametrize("text", HARD)
def test_clip_ids_equal_openais(clip, text):
    assert_openai_ids(clip, text)


@pytest.mark.parity
@pytest.mark.shared_data
def test_clip_ids_equal_the_recorded_ones_of_open_clip(clip):
    """OpenCLIP contains OpenAI's tokenizer."""
    for text, ids in zip(TEXTS, recorded("open_clip")["tokens"], strict=True):
        found = clip[0]([text])[0].tolist()
        expected = [49406, *json.loads(str(ids)), 49407]
        assert found[: len(expected)] == expected


@pytest.mark.parity
@pytest.mark.shared_data
@settings(max_examples=300, deadline=None)
@given(
    st.text(
        # The properties of unassigned and private characters depend on the version of Unicode.
        st.characters(exclude_categories=["Cs", "Cn", "Co"])
        | st.sampled_from("abcXYZ  '\u2019&;#0123\t\n.é<|>"),
        max_size=30,
    )
)
def test_clip_ids_of_any_text_equal_openais(clip, text):
    assert_openai_ids(clip, text)


@pytest.mark.parity
@pytest.mark.shared_data
def test_clip_ids_without_entities_equal_those_of_transformers(clip):
    tokenizer, _, directory = clip
    texts = [text for text in HARD if "&" not in text and "Σ" not in text]
    assert len(texts) > 12
    whole = tokenizer.backend(texts, padding="max_length", max_length=77, truncation=True)
    np.testing.assert_array_equal(tokenizer(texts, truncate=True), whole["input_ids"])

    tokenizer.backend.save_pretrained(directory / "tokenizer.json form")
    shutil.copy(directory / "config.json", directory / "tokenizer.json form")
    again = load_tokenizer(
        directory / "tokenizer.json form", read_config(directory / "tokenizer.json form", "float32")
    )
    np.testing.assert_array_equal(again(HARD, truncate=True), tokenizer(HARD, truncate=True))


@pytest.mark.shared_data
def test_long_texts_are_refused_or_truncated_on_request(clip, unchecked):
    tokenizer, _, _ = clip
    fits, too_long = "cat " * 75, "cat " * 76 + "!"
    assert tokenizer([fits])[0, -1] == 49407
    with pytest.raises(ValueError, match=r"the text 'cat cat .*…' has 79 tokens.* context of 77"):
        tokenizer(["a dog", too_long])
    np.testing.assert_array_equal(tokenizer([too_long], truncate=True), tokenizer([fits]))
    assert tokenizer([]).shape == (0, 77)
    assert tokenizer([""]).dtype == np.int32
    with pytest.raises(ValueError, match="a sequence of strings, got the one string 'a dog'"):
        tokenizer("a dog")


@pytest.mark.shared_data
def test_a_tokenizer_larger_than_the_vocabulary_is_refused(clip):
    _, _, directory = clip
    other = directory / "small"
    shutil.copytree(directory, other, ignore=shutil.ignore_patterns("*form", "small"))
    (other / "config.json").write_text(json.dumps(clip_config(text={"vocab_size": 500})))
    tokenizer = load_tokenizer(other, read_config(other, "float32"))
    with pytest.raises(ValueError, match="token id 49407, but the model's vocabulary ends at 499"):
        tokenizer(["a"])


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(clip_config()))
    config = read_config(tmp_path, "float32")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer in .* or vocab.json and merges.txt or"):
        load_tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.json").write_text("{")
    tokenizer = load_tokenizer(tmp_path, config)  # the tokenizer of CLIP is read at the first text
    with pytest.raises(ValueError, match="no tokenizer can be read from"):
        tokenizer(["a cat"])


SENTENCES = (
    "a photo of a cat and a dog",
    "the quick brown fox jumps over the lazy dog",
    "this is a small picture of an airplane in the sky",
    "ships sail on water while frogs sit near the pond",
)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """Returns SigLIP's tokenizer over a small sentencepiece model, and that model."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("siglip")
    model = save_siglip_tokenizer(directory, SENTENCES * 20, 60)
    config = siglip_config(text={"max_position_embeddings": 64})
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(directory, read_config(directory, "float32"))
    return tokenizer, sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.mark.parity
@pytest.mark.parametrize(
    "text",
    [*SENTENCES, "", "  ", "?!", "A Photo,  of (a) CAT's dog!", "été 日本 👩", "a_b-c", "a\tb\n"],
)
def test_siglip_ids_equal_sentencepieces_of_the_cleaned_text(siglip, text):
    tokenizer, oracle = siglip
    canonical = text.lower().translate(str.maketrans("", "", string.punctuation))
    expected = [*oracle.encode(re.sub(r"\s+", " ", canonical).strip()), 1]
    assert tokenizer([text])[0].tolist() == expected + [1] * (64 - len(expected))


def test_truncated_siglip_texts_keep_their_end(siglip):
    tokenizer, oracle = siglip
    text = "the lazy dog " * 40
    with pytest.raises(ValueError, match="more than the context of 64"):
        tokenizer([text])
    assert tokenizer([text], truncate=True)[0].tolist() == [*oracle.encode(text)[:63], 1]


@pytest.fixture(scope="module")
def siglip2(tmp_path_factory):
    """Returns a small tokenizer like Gemma's, with the settings of SigLIP 2's checkpoints."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    directory = tmp_path_factory.mktemp("siglip2")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    symbols = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters]
    symbols += ["ca", "cat", "▁cat", "do", "dog"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("d", "o"), ("do", "g")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=special[3], fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.post_processor = processors.TemplateProcessing(
        "$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": False,
        "add_eos_token": True,
        "padding_side": "right",
        **{f"{name[1:-1]}_token": name for name in special},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 64}
    (directory / "config.json").write_text(json.dumps(siglip_config(text=text)))
    return load_tokenizer(directory, read_config(directory, "float32")), vocabulary


def test_siglip2_ids_equal_gemmas_of_lower_case_text(siglip2):
    tokenizer, vocabulary = siglip2
    expected = {
        "a Cat": ["a", "▁cat", "<eos>"],
        "DOG, cat": ["dog", "<0x2C>", "▁cat", "<eos>"],
        "É": ["<0xC3>", "<0xA9>", "<eos>"],
        "": ["<eos>"],
    }
    for row, symbols in zip(tokenizer(list(expected)), expected.values(), strict=True):
        ids = [vocabulary[symbol] for symbol in symbols]
        assert row.tolist() == ids + [0] * (64 - len(ids))


def test_truncated_siglip2_texts_keep_their_end(siglip2):
    tokenizer, vocabulary = siglip2
    with pytest.raises(ValueError, match="has 65 tokens, more than the context of 64"):
        tokenizer(["x" * 64])
    cut = tokenizer(["X" * 64], truncate=True)[0].tolist()
    assert cut == [vocabulary["x"]] * 63 + [1]


def test_lower_case_equals_that_of_the_tokenizers_library():
    from tokenizers import normalizers

    lower = normalizers.Lowercase()
    letters = [chr(code) for code in range(0x2FFFF) if unicodedata.category(chr(code))[0] == "L"]
    for text in ("ΟΔΟΣ ΣΟΦΟΣ", "İI", "".join(letters[::7])):
        assert lower_case(text) == lower.normalize_str(text)
