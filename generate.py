#!/usr/bin/env python
"""Sample from a trained model: `python deepy.py generate.py CONFIG... [-i PROMPTS] [-o SAMPLES]`."""

from megatron.common.errors import run_main


def main(input_args: list[str] | None = None, overwrite_values: dict | None = None) -> None:
    """Load the model that the config names and generate as `text_gen_type` says.

    Args: input_args: command line, None takes sys.argv; overwrite_values: config values that win over it.
    """
    from megatron.engine.inference import setup_for_inference_or_eval
    from megatron.generation.records import check_output
    from megatron.initialize import shut_down

    model, neox_args = setup_for_inference_or_eval(
        use_cache=True, overwrite_values=overwrite_values, input_args=input_args, check=check_output
    )
    generate = {
        "unconditional": generate_unconditional,
        "input-file": generate_from_file,
        "interactive": generate_interactive,
        "precompute": precompute,
    }[neox_args.text_gen_type]
    generate(neox_args, model)
    shut_down()


def sampling_options(neox_args) -> dict:
    """The config's sampling keys, as all generate_samples_* functions take them."""
    keys = ("maximum_tokens", "recompute", "temperature", "top_k", "top_p")
    return {key: getattr(neox_args, key) for key in keys}


def generate_unconditional(neox_args, model) -> None:
    from megatron.common.console import warn
    from megatron.text_generation_utils import generate_samples_unconditional

    if neox_args.temperature == 0 and neox_args.num_samples > 1:
        warn(
            "temperature=0 always takes the likeliest token, so all samples will be the same; set temperature, e.g. 1.0"
        )
    generate_samples_unconditional(
        neox_args,
        model,
        number_of_samples=neox_args.num_samples,
        output_file=neox_args.sample_output_file,
        return_logits=neox_args.return_logits,
        **sampling_options(neox_args),
    )


def generate_from_file(neox_args, model) -> None:
    from megatron.text_generation_utils import generate_samples_input_from_file

    generate_samples_input_from_file(
        neox_args,
        model,
        input_file=neox_args.sample_input_file,
        output_file=neox_args.sample_output_file,
        return_logits=neox_args.return_logits,
        prompt_end=neox_args.prompt_end,
        **sampling_options(neox_args),
    )


def generate_interactive(neox_args, model) -> None:
    from megatron.text_generation_utils import generate_samples_interactive

    generate_samples_interactive(
        neox_args, model, prompt_end=neox_args.prompt_end, **sampling_options(neox_args)
    )


def precompute(neox_args, model) -> None:
    from megatron.text_generation_utils import precompute_logits

    precompute_logits(neox_args, model)


if __name__ == "__main__":
    run_main(main)
