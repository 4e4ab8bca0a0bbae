"""A language model small enough to be trained in a minute, with checkpoints: what snapshots.yaml collects.

A GPT-2 of two layers reads Python's own documentation and sources, in tokens of a vocabulary made from them. Folders
in Hugging Face format, with tokenizer, are written at steps 0, 16, 64 and 256.

    python examples/train_checkpoints.py runs/snapshots/checkpoints
    headworks run examples/snapshots.yaml
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

STEPS = (0, 16, 64, 256)
VOCABULARY, WIDTH, CONTEXT = 1024, 64, 64
FILES = ("pydoc_data/topics.py", "argparse.py", "inspect.py", "typing.py", "tarfile.py", "subprocess.py")


def texts() -> list[str]:
    """Prose and sources of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    return [(library / name).read_text("utf-8") for name in FILES]


def make_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    specials = {"bos_token": "<eos>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)


def train(output: Path, steps: Iterable[int] = STEPS, *, batch: int = 16, seed: int = 0) -> list[float]:
    """Train as far as the last of ``steps``, saving at each of them; the loss of every step in nats a token."""
    documents = texts()
    tokenizer = make_tokenizer(documents)
    ids = torch.tensor(tokenizer("\n".join(documents))["input_ids"])
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=WIDTH,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    disable_progress_bar()  # of saving, which takes a blink
    saved, losses = {*steps}, []
    for step in range(max(saved) + 1):
        if step in saved:
            model.save_pretrained(output / f"step{step}")
            tokenizer.save_pretrained(output / f"step{step}")
        starts = torch.randint(len(ids) - CONTEXT, (batch,))
        rows = torch.stack([ids[start : start + CONTEXT] for start in starts.tolist()])
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    place = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/snapshots/checkpoints")
    found = train(place)
    print(
        f"loss {found[0]:.2f} at the first step, {sum(found[-16:]) / 16:.2f} at the last ones; checkpoints in {place}"
    )
