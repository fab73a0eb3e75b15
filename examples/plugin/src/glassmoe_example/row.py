"""A row of table 1: MoE-X with the cosine router, compared with the GELU model."""

from glassmoe.papers.moex.suites import TableRow

ROW = TableRow({"ffn": "moe-x", "router": "cosine"}, ahead_of=("gelu",))
