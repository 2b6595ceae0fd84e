"""Shell completion: commands, their options, and config fields."""

import argparse

from attention_jax.config.fields import OF_TASK, list_fields, merge_fields

_SCRIPT = """\
# Completion for launch.sh in bash, and in zsh after: autoload -U bashcompinit && bashcompinit
_attention_jax() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" command="${{COMP_WORDS[1]}}" words=""
  if [[ "$word" == "=" ]]; then word="" before="="; fi # bash breaks words at it, zsh does not
  if ((COMP_CWORD == 1)); then
    words="{commands}"
  else
    case "$command" in
{cases}
    esac
  fi
  if [[ "$before" == "=" ]]; then
    COMPREPLY=($(compgen -f -- "$word"))
  elif [[ "$word" == --*=* ]]; then
    COMPREPLY=($(compgen -P "${{word%%=*}}=" -f -- "${{word#*=}}"))
  elif [[ "$word" == -* || $COMP_CWORD == 1 ]]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ "${{COMPREPLY[0]:-}}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
  else
    COMPREPLY=($(compgen -f -- "$word"))
  fi
}}
complete -F _attention_jax launch.sh ./launch.sh attention_jax
"""
LAUNCH_COMMANDS = "quickstart local tpu slurm gke notebook python test setup"  # commands of launch.sh alone
WITH_FIELDS = ("train", "evaluate", "probe", "translate", "score", "compare", "preflight", "config", "prepare")


def render_completion(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """Returns a bash script that completes commands, options, fields of configs and file names.

    Args:
        parsers: {command: the command's parser}.
    """
    fields = dict.fromkeys(
        f"--config.{spelled}="
        for own in OF_TASK.values()
        for name, field in list_fields(merge_fields(own)).items()
        for spelled in field.names(name)
    )
    cases = []
    for command, parser in parsers.items():
        words = [f"{option}{'=' * (action.nargs != 0)}" for action in parser._actions for option in action.option_strings]
        words += fields if command in WITH_FIELDS else ()
        cases.append(f'      {command}) words="{" ".join(words)}" ;;')
    commands = " ".join([*parsers, *LAUNCH_COMMANDS.split()])
    return _SCRIPT.format(commands=commands, cases="\n".join(cases))
