"""Tiny random encoders of each architecture, and sentences of made-up words with something to learn in them."""

import pytest
import torch
import transformers

VOCABULARY, WIDTH = 100, 10
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # at 0.02 so small a network hardly depends on its words
    "pad_token_id": 0,
}
CONFIGS = {
    "bert": (transformers.BertConfig, SHAPE),
    "roberta": (transformers.RobertaConfig, SHAPE),
    "deberta-v2": (
        transformers.DebertaV2Config,
        {**SHAPE, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    ),
    "distilbert": (
        transformers.DistilBertConfig,
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "initializer_range": 0.2},
    ),
    "modernbert": (
        transformers.ModernBertConfig,
        {**SHAPE, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
    "electra": (transformers.ElectraConfig, {**SHAPE, "embedding_size": 16}),
    "albert": (transformers.AlbertConfig, {**SHAPE, "embedding_size": 16}),
}


@pytest.fixture(autouse=True)
def seeded_on_one_thread():
    """One thread: on networks as small as these, threads only wait for each other, on a busy machine for long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def encoder():
    """Makes a model in training mode: architecture, dropout off by default, and any setting of its config."""

    def make(architecture="bert", task="SequenceClassification", dropout=0.0, **settings):
        config_class, shape = CONFIGS[architecture]
        config = config_class(**shape, **settings)
        for name in vars(config):
            if "dropout" in name and isinstance(getattr(config, name), float):
                setattr(config, name, dropout)
        return getattr(transformers, f"AutoModelFor{task}").from_config(config).train()

    return make


@pytest.fixture
def sentences():
    """Makes a padded batch whose label is whether the second word is from the upper half of the vocabulary."""

    def make(count=8, seed=0, labels="class"):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCABULARY, (count, WIDTH), generator=generator)
        lengths = torch.randint(3, WIDTH + 1, (count,), generator=generator)
        mask = (torch.arange(WIDTH) < lengths[:, None]).long()
        upper = ids[:, 1] >= (5 + VOCABULARY) // 2
        known = {
            "class": upper.long(),
            "score": upper.float() * 2 - 1,
            "several": torch.stack([upper, ids[:, 2] % 2 == 0, ids[:, 0] % 3 == 0], dim=1).float(),
            "tokens": torch.where(mask == 1, (ids >= (5 + VOCABULARY) // 2).long(), -100),
        }
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": known[labels]}

    return make
