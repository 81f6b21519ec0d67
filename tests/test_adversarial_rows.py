"""The table of bad input and bad days has 48 rows, and each has a test of its name."""

import re
from pathlib import Path

N_ROWS = 48


def test_every_row_of_the_table_has_a_test():
    files = Path(__file__).parent.glob("test_adversarial*.py")
    texts = [file.read_text(encoding="utf-8") for file in files]
    tested = {int(row) for text in texts for row in re.findall(r"^def test_row_(\d+)_", text, flags=re.MULTILINE)}
    assert tested == set(range(1, N_ROWS + 1))
