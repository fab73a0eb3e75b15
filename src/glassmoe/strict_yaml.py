"""YAML of configurations, without what hides mistakes."""

from __future__ import annotations

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """YAML without two features that hide mistakes: repeated keys, of which YAML takes the last, and aliases, which can
    grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here, write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise yaml.YAMLError(f"the key {name} is given twice")
        return super().construct_mapping(node, deep)
