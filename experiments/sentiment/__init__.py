"""Preference methods on a real language model, SmolLM2-135M, whose answers are judged by a known reward.

    python -m experiments.sentiment         # or `make experiment-sentiment`; `--quick` takes minutes

The quickstart's task, larger: `world` makes prompts and pairs, `arms` says what is compared, `runs` trains and
measures one of them, `comparison` has the statistics, `page` the tables. Nothing here is part
of the installed package.
"""
