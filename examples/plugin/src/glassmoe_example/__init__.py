"""A layer, a router, a coder, a judge and a table row for glassmoe."""
