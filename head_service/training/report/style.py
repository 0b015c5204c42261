"""The page's style sheet: light and dark by the reader's own setting, from a phone's width on."""

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --ink: #1d232b; --muted: #5b6574; --line: #d9dee6; --paper: #fefefe; --card: #f3f5f8; --accent: #0a5fb4;
  --better: #156c36; --worse: #b02a1c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ee; --muted: #98a2b3; --line: #2c343f; --paper: #12161c; --card: #1b2129; --accent: #6db1ff;
    --better: #68c98a; --worse: #ff8d7e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere;
}
h1 { margin: 0 0 .25rem; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem; line-height: 1.3; }
p { margin: .5rem 0; max-width: 46rem; }
.muted, caption, figcaption { color: var(--muted); }
.headline { max-width: none; margin: 1.25rem 0; padding: 1rem 1.25rem; border-radius: .5rem; background: var(--card); }
.headline strong { display: block; font-size: 2.25rem; line-height: 1.15; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem 1.5rem; margin: 1rem 0; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; }
.long { grid-column: 1 / -1; }
code { font: .85em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
.wide { overflow-x: auto; margin: .75rem 0; }
.wide:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; min-width: 22rem; font-size: .925rem; }
caption { padding: 0 0 .4rem; text-align: left; font-size: .9rem; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom-color: var(--muted); font-weight: 600; vertical-align: bottom; }
thead th { overflow-wrap: normal; }
tbody th { font-weight: 500; min-width: 6rem; max-width: 18rem; }
td { min-width: 6rem; }
td.number, tbody th.brief { min-width: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; overflow-wrap: normal; }
.bar::before {
  content: ""; display: inline-block; width: 4rem; height: .55rem; margin-right: .5rem; border-radius: 2px;
  background: linear-gradient(to right, var(--accent) calc(var(--share) * 100%), var(--line) 0);
}
.better { color: var(--better); }
.worse { color: var(--worse); }
td.prose { min-width: 18rem; max-width: 32rem; white-space: pre-wrap; }
figure { margin: 1rem 0; }
img { display: block; max-width: 100%; height: auto; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 36rem) {
  body { padding: 1rem .85rem 3rem; }
  table { min-width: 100%; font-size: .84rem; }
  th, td { padding-right: .55rem; }
  tbody th { min-width: 5.5rem; }
  td { min-width: 5rem; }
  td.prose { min-width: 15rem; }
  .bar::before { width: 1.75rem; margin-right: .35rem; }
}
"""
