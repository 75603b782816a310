"""What the page of benchmarks/ideas.py says beside its tables; its verdicts are of the cells of
2026-11-28."""

from typing import Any

ABOUT = """{date}, {processor}, one thread, ressa {ressa}, torch {torch}, transformers {transformers}.
`python benchmarks/ideas.py WORK`.

Three ideas of `--token-weights`, `--allocation` and reconstruction, and one of `--shrinkage`, each
beside what ressa has. Embedded models: KL to the dense model over the answer tokens of 1,000 test questions
(nats, lower is better), and exact match in per cent (greedy decoding, told from the forward
that gives the KL); 128 questions calibrate. SmolLM2-135M: perplexity of 6 windows of 510
tokens of either text; 16 windows calibrate, products in bfloat16. Nothing is repaired. A
difference is from the table's first variant at the same seeds, [95 % of a paired bootstrap
over questions or windows]; where there are several seeds, each question has their mean. s is
seconds of processor time for pruning, the idea's own work included. The machine was shared,
so that wall time says nothing."""

UNIT = "gradient(power=1.0,unit=True)"
IDEAS: list[dict[str, Any]] = [
    {
        "title": "Gradient-weighted statistics",
        "text": """VLMQ (2508.03351), GuidedQuant (2505.07004). One backward of the answers' loss through the
dense model gives the length of the gradient at each linear's output for each token; divided
by the mean of the record, cut off at 10, mixed with a tenth of equal weights. *Gradient of
the plain loss* did harm on `emoji-instructblip`, as a test cell showed (ADMM at 2:4), for
where the dense model is sure of an answer token nothing is left of its gradient: of a T5
decoder's three tokens one had all the weight. *Gradient* divides each answer token's loss by
the length of its gradient at the logits. That, and the power, the cut and the tenth, were
chosen on validation questions with ADMM at 2:4 on both models (Wanda was looked at too on
`demo`); no other cell had a say.""",
        "verdict": """Built in as `--token-weights gradient`, for models that see pictures alone. On questions the KL
is clearly lower in all twelve cells of `demo`; on `emoji-instructblip` in six, and no different
in the other six. On captions, which it was not shown, it is lower in all cells of `demo`; on
`emoji-instructblip` lower in four and higher in three (ALPS and SparseGPT at 2:4, Wanda at 60 %);
no caption is right there either way. On SmolLM2, where nothing was tuned, it depends on the
method: with SparseGPT it leaves 0.91 to 0.99 of the perplexity, with ADMM 0.97 to 1.03, with
Wanda 0.95 to 1.20, for three and a half times Wanda's work. Of text windows every token is an
answer, so it stays refused for text-only models. A weight for picture tokens does better on
`demo` with Wanda at 70 %, and harms `emoji-instructblip`; the gradient needs no such choice.""",
        "variants": (
            "plain",
            UNIT,
            "gradient(power=1.0)",
            "image(weight=0.1)",
            "gradient(power=2.0)",
            "gradient(power=0.5)",
            "gradient(power=1.0,floor=0.5)",
            "gradient(power=1.0,clip=3.0,floor=0.02)",
            "gradient(power=1.0,part='vision')",
            "gradient(power=1.0,part='language')",
            "gradient(power=1.0,unit=True,part='language')",
        ),
        "names": (
            "all tokens alike",
            "gradient",
            "gradient of the plain loss",
            "image=0.1",
            "plain loss, squared",
            "plain loss, its root",
            "plain loss, half of the weight equal",
            "plain loss, cut off at 3",
            "plain loss, vision only",
            "plain loss, language only",
            "gradient, language only",
        ),
    },
    {
        "title": "Arithmetic allocation",
        "text": """ATP (2502.14770). Sparsity rises with depth in equal steps, from S - spread to S + spread, in
vision and in language apart.""",
        "verdict": """Built in as `--allocation arithmetic` with one `spread`, which is to be tried with 0 among the
trials: as a fixed default it would not pass. On `demo` a spread of 0.05 is clearly better in
seven of eight cells and no different with ALPS at 60 %; 0.15, chosen on validation questions for
Wanda at 70 %, is best there and does harm elsewhere but with SparseGPT at 70 %. OWL does there about
what 0.05 does. On `emoji-instructblip` every spread harms, and OWL more than 0.05; DLP, at its
own settings, harms both, but `demo` with Wanda at 70 %. On SmolLM2, where nothing was chosen,
a spread of 0.05 leaves 0.59 to 0.95 of the perplexity and one of 0.15 0.38 to 0.93, in every cell
that was run; DLP does about as 0.15, and OWL is no better than uniform at its own settings: what holds
for a language model of thirty alike blocks does not for small ones of two parts.""",
        "variants": (
            "plain",
            "arithmetic(spread=0.05)",
            "arithmetic(spread=0.1)",
            "arithmetic(spread=0.15)",
            "owl",
            "dlp",
        ),
        "names": ("uniform", "arithmetic, 0.05", "arithmetic, 0.1", "arithmetic, 0.15", "owl", "dlp"),
    },
    {
        "title": "Local block matching",
        "text": """3BASiL-TM (2603.01376), LaCo. Once a block is pruned, its kept weights, biases and norms are
trained (Adam, 3 passes over the calibration records, 1e-3 with a cosine) towards what the
dense block gives *on the same inputs*, and the walk goes on through the trained block. Beside
it the same training towards what the dense block gives on the *dense model's* inputs, within
the walk too, and afterwards as `ressa repair --reconstruct` does it.""",
        "verdict": """Left out. At equal passes and time the local target leaves clearly more error than today's in
17 of the 24 cells of both models, and clearly less in none: it cannot undo what the pruned prefix
has lost. The difference is largest with Wanda (0.09 to 0.47 nats) and smallest with ADMM and
ALPS, which leave the prefix little to undo. On SmolLM2 at 2:4 by Wanda it leaves 1.20 and 1.14
of the perplexity. On captions it is worse in 15 cells, better in one. Today's target within the walk is as good
as afterwards, no better, so that nothing is gained by moving it there. Passes and learning rate
are the same for all and tuned for none.""",
        "variants": (
            "after(epochs=3,lr=0.001)",
            "local(epochs=3,lr=0.001)",
            "prefix(epochs=3,lr=0.001)",
            "plain",
        ),
        "names": (
            "dense inputs' target, afterwards (today's)",
            "local target, in the walk",
            "dense inputs' target, in the walk",
            "not trained",
        ),
    },
    {
        "title": "Shrinkage for few tokens",
        "text": """Of this project, after ALPS was seen to lose to ADMM on `emoji-instructblip`, whose decoder
sees three tokens a record. 0.5 times inputs over tokens is added to the Gram's diagonal, as a
share of it, before the method's own damping (0.01, ADMM 0.1); towards uncorrelated inputs, as the
estimator of Ledoit and Wolf (2004) goes. 0.3, 0.5 and 1 were tried on 400 validation questions,
seed 0, with the three methods at 2:4 and 70 % on both models.""",
        "verdict": """Built in as `--shrinkage`, no default. On `emoji-instructblip` ALPS and SparseGPT leave clearly
less in all six cells, ALPS half as much at 2:4 and 60 %; ADMM, whose damping is ten times
theirs, at 2:4. With it ALPS is the best method there too at each of the three sparsities. On captions, which calibrate
nothing, all nine cells of that model are lower. On `demo`, where blocks see thousands of tokens,
next to nothing changes: ADMM and ALPS leave up to 5 % more, SparseGPT at 70 % 3 % less. On
SmolLM2, 8,000 tokens, SparseGPT keeps 0.93 to 0.98 of the perplexity, ADMM 0.98 to 1.05, ALPS at
70 % the same. It is no default because with ADMM, which is, it wins in one cell of six and loses in two.""",
        "variants": ("plain", "shrinkage(share=0.5)"),
        "names": ("no shrinkage", "0.5"),
    },
]
UNRUN = """Gradient and arithmetic: ALPS on SmolLM2.

Shrinkage: ALPS on SmolLM2 but at 70 %; `+refit`; a share that takes ADMM's damping into account.

Gradient: other powers and clips once each answer token pulled alike; the gradient of a block's
reconstruction, which VLMQ takes.

Arithmetic: ALPS with a spread of 0.15 and DLP; more calibration text for SmolLM2
(benchmarks/results/smollm2.md has OWL and DLP on it); spreads chosen on validation for 60 % and
for SparseGPT.

Local block matching: SmolLM2 but for Wanda at 2:4; more passes.

SmolLM2 has one seed; its intervals are over windows.

The same command with these cells named goes on where it stopped."""
