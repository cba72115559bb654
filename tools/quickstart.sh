#!/usr/bin/env bash
# From nothing to a trained and sampled model. Every step shows the plain command that it runs.
# Run again, it goes on where it stopped: finished steps are recognised, and training resumes from its last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python}
CONFIGS=(configs/quickstart.yml)
SAMPLES=samples/quickstart.jsonl

# Without the second file a run takes all GPUs; on a machine that has none, two processes share the batch.
if ! "$PYTHON" -c 'from megatron.common.device import has_accelerator as found; raise SystemExit(not found())'; then
    CONFIGS+=(configs/two_processes.yml)
fi

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

step() { # step NUMBER WHAT COMMAND...
    local number=$1 what=$2
    shift 2
    printf '\n%s[%s/4] %s%s\n$ %s\n' "$bold" "$number" "$what" "$plain" "$*"
    "$@"
}

step 1 "A corpus and a tokenizer: the sources and docs of Python's standard library" \
    "$PYTHON" prepare_data.py stdlib --train-tokenizer --vocab-size 2048
step 2 "Training" \
    "$PYTHON" deepy.py train.py "${CONFIGS[@]}"
step 3 "Sampling" \
    "$PYTHON" deepy.py generate.py "${CONFIGS[@]}"
step 4 "What it writes" \
    "$PYTHON" tools/show_samples.py "$SAMPLES"

cat <<SUMMARY

${bold}Done. Where everything is:${plain}
  data/stdlib/             the corpus, its tokenizer (tokenizer.json) and the tokens (*.bin, *.idx)
  configs/quickstart.yml   the configuration; every key is explained in configs/neox_arguments.md
  checkpoints/quickstart/  the model; running the training command again resumes from here
  logs/quickstart/         what was printed, and the metrics (metrics.jsonl)
  tensorboard/quickstart/  curves: $(dirname "$PYTHON")/tensorboard --logdir tensorboard
  $SAMPLES  the samples

${bold}Next:${plain}
  talk to it               $PYTHON deepy.py generate.py ${CONFIGS[*]} configs/interactive.yml
  your own text            README.md, "Your own text"
SUMMARY
