"""``python -m tests.large_inputs``: hand in texts that ask for much, in a process that has taken nothing yet."""

from __future__ import annotations

import json
import resource
import time
from typing import Final

from .bad_input import check_config, check_targets

JOB: Final = "scrape_configs:\n- job_name: a\n"
RULES: Final = f"{JOB}  relabel_configs:\n"


def large_inputs() -> dict[str, str]:
    """Return texts that ask for much time or space: what is nested, repeated, merged, compared with each other."""
    many = range(10_000)
    word = "a" * 500_000
    return {
        "alias bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "aliases of aliases": "- &a0 {}\n" + "".join(f"- &a{n + 1} {{k: *a{n}}}\n" for n in many),
        "anchors": "".join(f"- &a{n} x\n" for n in many),
        "merged mappings": "".join(f"- &a{n} {{p: {{k{n}: v}}}}\n" for n in many)
        + f"- <<: [{','.join(f'*a{n}' for n in many)}]\n",
        "brackets": "[" * 500_000,
        "question marks": "? " * 250_000,
        "items": f"[{'x,' * 100_000}]",
        "empty lists": f"[{'[],' * 50_000}]",
        "documents": "---\n" * 20_000,
        "comments": "#\n" * 250_000,
        "tag directives": "".join(f"%TAG !a{n}! x\n" for n in range(50_000)) + "--- a\n",
        "tags": "%TAG !a! x\n---\n" + "- !a!x a\n" * 20_000,
        "a long key": f"? {word}\n: x",
        "a long key of a section": f"{JOB}  ? {word}\n  : x",
        "a long key in JSON": f'[{{"{word}": 1}}]',
        "a long number": f"{JOB}  sample_limit: {'9' * 500_000}",
        "a long number in JSON": f"[{'9' * 500_000}]",
        "a long duration": f"{JOB}  scrape_interval: {'9' * 500_000}",
        "a long size": f"{JOB}  body_size_limit: {'9' * 500_000}",
        "a long size with units": f"{JOB}  body_size_limit: {'1B' * 250_000}x",
        "a long URL": f"{JOB}  proxy_url: 'http://[{':' * 500_000}'",
        "a long file": f"{JOB}  file_sd_configs: [{{files: ['{word}*.json']}}]",
        "a long ZooKeeper path": f"{JOB}  serverset_sd_configs: [{{servers: [a], paths: ['{'/a' * 250_000}']}}]",
        "a long ZooKeeper server": f"{JOB}  serverset_sd_configs: [{{servers: ['{'[' * 500_000}'], paths: [/a]}}]",
        "a long template": f"{RULES}  - {{replacement: '{'$1x$' * 20_000}', target_label: a}}\n",
        "a long expression": f"{RULES}  - {{regex: '{word}', target_label: a}}\n",
        "groups in groups": f"{RULES}  - {{regex: '{'(' * 900}{')' * 900}', target_label: a}}\n",
        "repetitions of repetitions": f"{RULES}  - {{regex: '((a{{1000}}){{1000}}){{1000}}', target_label: a}}\n",
        "large expressions": RULES
        + "".join(f"  - {{regex: '\\pL{{40}}b{n}', target_label: a, source_labels: [a]}}\n" for n in range(30)),
        "expressions that are too large": RULES
        + "".join(f"  - {{regex: '(\\pL{{9}}){{{n}}}', target_label: a}}\n" for n in range(0, 100, 4)),
        "jobs": "scrape_configs:\n" + "".join(f"- {{job_name: j{n}}}\n" for n in many),
        "rules": RULES + "".join(f"  - {{regex: 'a(b+){n}', target_label: a}}\n" for n in range(1_000)),
        "parameters": f"{JOB}  params: {{{','.join(f'a{n}: [x]' for n in many)}}}",
        "headers": f"{JOB}  http_headers: {{{','.join(f'a{n}: {{values: [x]}}' for n in range(3_000))}}}",
        "protocols": f"{JOB}  scrape_protocols: [{'PrometheusProto,' * 10_000}]",
        "targets": f"{JOB}  static_configs: [{{targets: [{','.join(f'h{n}' for n in many)}]}}]",
        "attributes": f"otlp: {{promote_resource_attributes: [{','.join(f'a{n}' for n in many)}]}}",
        "target groups": f"[{'{},' * 30_000}1]",
    }  # fmt: skip


def hand_in() -> None:
    """Print of each large input what harm it did, how long it took, and the most space that was ever taken, in MB."""
    inputs = large_inputs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, text in inputs.items():
        start = time.process_time()
        try:
            if text.startswith("["):
                check_targets(text.encode(), "/nowhere/targets.json")
            check_config(text.encode())
            harm = ""
        except Exception as error:  # noqa: BLE001  # told by the test
            harm = repr(error)[:300]
        space = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([name, harm, time.process_time() - start, space]), flush=True)


if __name__ == "__main__":
    hand_in()
