"""Ablation tables: a table file is data (`table`), run row by row (`runner`), estimated (`statistics`) and shown (`render`)."""
