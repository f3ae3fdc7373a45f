"""What passes through Arrow files, and the settings that stand while it does."""

import os

from dynamic_dpo.data.arrow import map_tables, write_json_lines


def test_setting_for_tokenizer_threads_is_put_back(monkeypatch):
    def first_column(table, indices):
        import os

        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        return table

    monkeypatch.setattr("dynamic_dpo.data.arrow._MIN_ROWS_PER_PROCESS", 1)
    rows = write_json_lines([b"{}"] * 4)
    for before in ("true", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM")
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        mapped = map_tables(rows, first_column, features=rows.features, desc="copying", num_proc=2)
        assert mapped[:] == rows[:]
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
