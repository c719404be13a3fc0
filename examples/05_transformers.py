"""Watch a model of Hugging Face's transformers: one callback for its Trainer.

Run as ``python 05_transformers.py [DIRECTORY]``; without a directory everything is written to a temporary one.
"""

from __future__ import annotations

import sys
import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from gradwatch.transformers import GradWatchCallback


def main(directory: str) -> None:
    """Trains a small vision transformer on 8 x 8 scans of handwritten digits, and prints what the watch has seen."""
    set_seed(0)
    scans = load_digits()
    images = torch.tensor(scans.images / 16, dtype=torch.float32).unsqueeze(1)  # (scans, 1, 8, 8)
    data = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, scans.target, strict=True)]
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, num_labels=10,
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    )  # fmt: skip

    callback = GradWatchCallback(every=10)
    trainer = Trainer(
        model=ViTForImageClassification(config),
        args=TrainingArguments(
            output_dir=directory,
            num_train_epochs=8,
            per_device_train_batch_size=64,
            learning_rate=3e-3,
            warmup_steps=20,
            max_grad_norm=1.0,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=data,
        callbacks=[callback],
    )
    trainer.train()

    print(callback.watch.report())
    history = callback.watch.history
    print(f"\nloss: {history[0].loss:.3f} at first, {history[-1].loss:.3f} at last")
    clipped = sum(record.clip < 1 for record in history)
    print(f"gradients were clipped at {clipped} of {len(history)} steps")
    if sys.argv[1:]:
        print(f"tensorboard --logdir {directory}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(temporary)
