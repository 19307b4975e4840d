#!/usr/bin/env python3
"""Draws the times of one launch as a chart: chart.py RESULTS.json CHART.svg

RESULTS.json is what `AUTOCVD_BENCH_RESULTS=RESULTS.json cargo bench` writes.
"""

import json
import math
import sys
from html import escape

LEFT, RIGHT, ROW, TOP, WIDTH = 380, 70, 26, 34, 840
# Legible on white and on GitHub's dark background alike.
OWN, OTHER, TEXT, GRID = "#3fa34d", "#8b949e", "#57606a", "#8b949e"
SECTION = "One launch (8 idle GPUs)"
LEFT_OUT = ("true", "stand-in", "python3")


def main(results, chart):
    with open(results, encoding="utf-8") as file:
        document = json.load(file)
    rows = [
        (row["name"], row["microseconds"] / 1000)
        for row in document["rows"]
        if row["section"] == SECTION
        and "microseconds" in row
        and not row["name"].startswith(LEFT_OUT)
    ]
    rows.sort(key=lambda row: row[1])
    lowest = 10 ** math.floor(math.log10(rows[0][1]))
    highest = 10 ** math.ceil(math.log10(rows[-1][1]))
    scale = (WIDTH - LEFT - RIGHT) / math.log10(highest / lowest)

    def x(milliseconds):
        return LEFT + math.log10(milliseconds / lowest) * scale

    bottom = TOP + ROW * len(rows)
    machine = document["machine"]
    title = (
        "Time of one launch, in ms (logarithmic); "
        f"{machine['cpu']}, {machine['cores']} cores, {document['date']}"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 24}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>text {{ font: 13px system-ui, sans-serif; fill: {TEXT} }}"
        " .small { font-size: 11px }",
        "@media (prefers-color-scheme: dark) { text { fill: #c9d1d9 } }</style>",
        f'<text x="8" y="18" class="small">{escape(title)}</text>',
    ]
    tick = lowest
    while tick <= highest:
        parts.append(
            f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"'
            f' stroke="{GRID}" opacity="0.4"/>'
        )
        parts.append(
            f'<text x="{x(tick):.1f}" y="{bottom + 16}" class="small" text-anchor="middle">'
            f"{tick:g}</text>"
        )
        tick *= 10
    for number, (name, milliseconds) in enumerate(rows):
        own = name.startswith("autocvd") and "0.2.1" not in name
        y, end = TOP + ROW * number, x(milliseconds)
        middle = y + ROW / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle}" text-anchor="end">{escape(name)}</text>')
        colour = OWN if own else OTHER
        parts.append(
            f'<rect x="{LEFT}" y="{y + 4}" width="{end - LEFT:.1f}" height="{ROW - 8}" rx="2"'
            f' fill="{colour}"/>'
        )
        digits = 1 if milliseconds < 10 else 0
        parts.append(f'<text x="{end + 6:.1f}" y="{middle}">{milliseconds:.{digits}f}</text>')
    parts.append("</svg>\n")
    with open(chart, "w", encoding="utf-8") as file:
        file.write("\n".join(parts))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
