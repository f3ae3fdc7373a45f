"""Outputs and verdicts in the files of other evaluations: AlpacaEval's, Arena-Hard's and MT-Bench's."""

from __future__ import annotations

from dynamic_dpo.eval.exchange.alpaca_eval import Imported as Imported
from dynamic_dpo.eval.exchange.alpaca_eval import export_alpaca_annotations as export_alpaca_annotations
from dynamic_dpo.eval.exchange.alpaca_eval import export_alpaca_outputs as export_alpaca_outputs
from dynamic_dpo.eval.exchange.alpaca_eval import import_alpaca_annotations as import_alpaca_annotations
from dynamic_dpo.eval.exchange.alpaca_eval import import_alpaca_outputs as import_alpaca_outputs
from dynamic_dpo.eval.exchange.alpaca_eval import instruction_of as instruction_of
from dynamic_dpo.eval.exchange.answers import ImportedAnswers as ImportedAnswers
from dynamic_dpo.eval.exchange.answers import answers_to_prompt as answers_to_prompt
from dynamic_dpo.eval.exchange.answers import import_answers as import_answers
from dynamic_dpo.eval.exchange.arena_hard import export_arena_hard_judgements as export_arena_hard_judgements
from dynamic_dpo.eval.exchange.arena_hard import import_arena_hard_judgements as import_arena_hard_judgements
from dynamic_dpo.eval.exchange.mt_bench import export_mt_bench_grades as export_mt_bench_grades
from dynamic_dpo.eval.exchange.mt_bench import import_mt_bench_grades as import_mt_bench_grades
