"""Ablation tables: table files (`table`), running them (`runner`), estimates (`statistics`) and their formats (`render`)."""
