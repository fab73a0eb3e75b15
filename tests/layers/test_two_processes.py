"""Running statistics of two processes: equal in both, and those of one process that has all tokens."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import forked
from glassmoe.model import GlassConfig, build_feed_forward

STEPS, TOKENS, WIDTH = 3, 10, 12
SHARES = (7, 3)
"""Tokens of each process: a single mean of both means would be wrong."""
KINDS = ("peer", "monet-hd", "monet-vd")
PROCESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch.distributed as dist
from test_two_processes import KINDS, learn
rank, folder = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=int(rank), world_size=2)
for ffn in KINDS:
    learn(ffn, int(rank), f"{{folder}}/{{ffn}}-{{rank}}.safetensors")
dist.destroy_process_group()
"""


def learn(ffn: str, rank: int | None, out: str | Path) -> None:
    """Passes over the share of process `rank`, or over all tokens; saves the buffers and the last output."""
    torch.manual_seed(0)
    layer = build_feed_forward(GlassConfig(width=WIDTH, active_width=48, num_experts=4, ffn=ffn)).train()
    for p in layer.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for step in range(STEPS):
        x = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(step)) + step
        y, losses = layer(x if rank is None else x.split(SHARES)[rank])
    (y.square().sum() + sum(losses.values())).backward()
    if rank == 0:
        with torch.no_grad():
            layer(x), layer.features(x)  # reading waits for no other process
    save_file({**{name: buffer.clone() for name, buffer in layer.named_buffers()}, "output": y}, out)


def test_running_statistics_are_those_of_all_tokens(tmp_path: Path) -> None:
    children = [forked.start([str(rank), str(tmp_path)], program=PROCESS) for rank in range(2)]
    for ffn in KINDS:
        learn(ffn, None, tmp_path / f"{ffn}-one.safetensors")
    assert [child.wait(60) for child in children] == [0, 0]
    for ffn in KINDS:
        one, first, second = (load_file(tmp_path / f"{ffn}-{which}.safetensors") for which in ("one", 0, 1))
        buffers = [name for name in one if name != "output"]
        assert len(buffers) == 2
        for name in buffers:
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], one[name], rtol=1e-6, atol=1e-6)
        if ffn != "peer":  # each pass of peer is normalised by its own tokens, with gradients
            both = torch.cat([first["output"], second["output"]])
            torch.testing.assert_close(both, one["output"], rtol=1e-5, atol=1e-5)
