"""The demo's trainer: a small numpy network on scikit-learn's digits, with checkpoints.

It logs some twenty metrics a step, validation generations as a table every hundred steps, and
goes on from its last checkpoint when it is started again. It knows nothing of replay.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

import eventlog

EVERY = 100
HIDDEN = 48
BATCH = 64

Weights = dict[str, np.ndarray[Any, Any]]


def main() -> int:
    """Train to the last step, from the last checkpoint on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--journal", required=True)
    parser.add_argument("--checkpoints", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--report", action="store_true", help="Print each step once it is logged.")
    options = parser.parse_args()

    run = eventlog.init(
        project="demo",
        name="digits-mlp",
        id="from-name",
        dir=options.journal,
        tags=["demo", "numpy"],
        config={
            "model": {"kind": "mlp", "hidden": HIDDEN},
            "optimizer": {"name": "momentum", "lr": 0.05, "momentum": np.float32(0.9)},
            "batch_size": BATCH,
            "steps": options.steps,
        },
    )
    run.define_metric("*", step_metric="training/global_step")
    run.define_metric("val/accuracy", summary="max")
    step, weights, speed = load(options.checkpoints)
    train(run, options, step, weights, speed)
    return 0


def train(run: Any, options: Any, step: int, weights: Weights, speed: Weights) -> None:
    """Train, log, validate, checkpoint; validates at the checkpoint's own step before it trains."""
    digits = load_digits()
    inputs = (digits.data / 16.0).astype(np.float32)
    train_x, train_y = inputs[:1500], digits.target[:1500]
    val_x, val_y = inputs[1500:], digits.target[1500:]
    best = validate(run, weights, val_x, val_y, step)
    while step < options.steps:
        step += 1
        rng = np.random.default_rng(step)
        rows = rng.integers(0, len(train_x), BATCH)
        rate = 0.05 * 0.5 ** (step / 700)
        metrics = update(weights, speed, train_x[rows], train_y[rows], rate)
        run.log({"training/global_step": step, "train": metrics}, step=step)
        if options.report:
            print(step, flush=True)
        if step % EVERY == 0:
            best = max(best, validate(run, weights, val_x, val_y, step))
            save(options.checkpoints, step, weights, speed)
    run.summary.update({"best_accuracy": best, "last_step": step})
    run.finish()


def update(
    weights: Weights, speed: Weights, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], rate: float
) -> dict[str, Any]:
    """Take one step of gradient descent; return what there is to log of it."""
    hidden, probabilities = forward(weights, x)
    count = np.arange(len(y))
    loss = -np.log(probabilities[count, y] + 1e-9)
    error = probabilities.copy()
    error[count, y] -= 1
    error /= len(y)
    back = (error @ weights["w2"].T) * (hidden > 0)
    gradients = {
        "w1": x.T @ back,
        "b1": back.sum(axis=0),
        "w2": hidden.T @ error,
        "b2": error.sum(axis=0),
    }
    for name, gradient in gradients.items():
        speed[name] = (0.9 * speed[name] - rate * gradient).astype(np.float32)
        weights[name] += speed[name]
    right = probabilities.argmax(axis=1) == y
    metrics: dict[str, Any] = {
        "loss": float(loss.mean()),
        "loss_max": np.float32(loss.max()),
        "loss_min": np.float32(loss.min()),
        "accuracy": right.mean(),
        "correct": right.sum(),
        "lr": rate,
        "entropy": np.float32(-(probabilities * np.log(probabilities + 1e-9)).sum(axis=1).mean()),
        "confidence": np.float16(probabilities.max(axis=1).mean()),
        "dead_units": int((hidden.max(axis=0) == 0).sum()),
    }
    for name, gradient in gradients.items():
        metrics[f"grad_norm/{name}"] = np.linalg.norm(gradient)
        metrics[f"weight_norm/{name}"] = np.linalg.norm(weights[name])
    metrics["grad_norm/all"] = float(np.sqrt(sum((g**2).sum() for g in gradients.values())))
    metrics["seen"] = len(y)
    metrics["perfect"] = bool(right.all())
    return metrics


def forward(weights: Weights, x: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return the hidden layer and the probabilities."""
    hidden = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    scores = hidden @ weights["w2"] + weights["b2"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def validate(
    run: Any, weights: Weights, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], step: int
) -> float:
    """Log how good the network is, and what it said of a few samples."""
    _hidden, probabilities = forward(weights, x)
    said = probabilities.argmax(axis=1)
    accuracy = float((said == y).mean())
    rows = [
        [f"digit #{i} of the validation set", f"a {said[i]}", float(probabilities[i, y[i]])]
        for i in range(8)
    ]
    table = eventlog.Table(columns=["input", "output", "score"], data=rows)
    worst = float(-np.log(probabilities[np.arange(len(y)), y].min() + 1e-9))
    run.log({"val": {"accuracy": accuracy, "worst_loss": worst, "generations": table}}, step=step)
    return accuracy


def load(folder: Path) -> tuple[int, Weights, Weights]:
    """Return step, weights and momentum of the last checkpoint, or a new network."""
    saved = sorted(folder.glob("step-*.npz"))
    if saved:
        with np.load(saved[-1]) as file:
            weights = {name: file[name] for name in ("w1", "b1", "w2", "b2")}
            speed = {name: file[f"speed_{name}"] for name in weights}
            return int(file["step"]), weights, speed
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.1, (64, HIDDEN)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": rng.normal(0, 0.1, (HIDDEN, 10)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }
    return 0, weights, {name: np.zeros_like(value) for name, value in weights.items()}


def save(folder: Path, step: int, weights: Weights, speed: Weights) -> None:
    """Write a checkpoint whole."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".part-{os.getpid()}.npz"
    momentum = {f"speed_{name}": value for name, value in speed.items()}
    np.savez(part, step=step, **weights, **momentum)
    part.replace(folder / f"step-{step:06d}.npz")


if __name__ == "__main__":
    sys.exit(main())
