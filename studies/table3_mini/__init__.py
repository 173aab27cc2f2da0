"""The paper's table 3, in small, over seeds: ``python -m studies.table3_mini``."""
