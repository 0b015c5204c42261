"""The page's frame and what its style adds to that of a training report. What stands in it is decided in page.py."""

from typing import Final

from head_service.training.report.template import OPENING, PICTURE

EXTRA_STYLE: Final = """
body { max-width: 76rem; }
h3 { margin: 1.25rem 0 .25rem; font-size: 1rem; }
.headline { display: grid; grid-template-columns: minmax(13rem, auto) 1fr; gap: .5rem 2.5rem; align-items: start; }
.headline ul {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .4rem 1.5rem;
  margin: 0; padding: 0; list-style: none;
}
.headline li { display: flex; gap: .6rem; align-items: baseline; }
.headline li b {
  min-width: 4.2rem; text-align: right; font-size: 1.15rem; font-variant-numeric: tabular-nums; white-space: nowrap;
}
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)); gap: 0 2.5rem; }
.two > * { min-width: 0; }
.two ul { margin: .5rem 0; padding-left: 1.1rem; }
.two li { margin: .3rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(34rem, 100%), 1fr)); gap: 0 2rem; }
.figures > * { min-width: 0; }
figure img { width: 100%; max-width: 44rem; }
figcaption { font-size: .9rem; max-width: 44rem; }
table { font-size: .875rem; }
caption { color: var(--ink); font-weight: 600; }
tbody th { min-width: 11rem; max-width: 20rem; }
tbody td { min-width: 0; }
td.words { min-width: 9rem; max-width: 26rem; }
tr.marked { color: var(--muted); }
tr.marked th { font-style: italic; }
.note { margin: .25rem 0; font-size: .875rem; color: var(--muted); max-width: 60rem; }
@media (max-width: 36rem) {
  .headline { grid-template-columns: 1fr; }
  .headline strong { font-size: 1.9rem; }
  tbody th { min-width: 8rem; }
}
"""

TEMPLATE: Final = (
    """\
{%- macro table(shown, id) -%}
<div class="wide" role="region" aria-labelledby="{{ id }}" tabindex="0">
<table>
<caption id="{{ id }}">{{ shown.caption }}</caption>
<thead><tr>
{%- for column in shown.columns %}<th scope="col"{% if column.kind %} class="{{ column.kind }}"{% endif %}>{{ column.words }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in shown.rows -%}
<tr{% if row[0].kind == "marked" %} class="marked"{% endif %}><th scope="row" dir="auto">{{ row[0].words }}</th>
{%- for value in row[1:] %}<td class="{{ value.kind or "words" }}" dir="auto">{{ value.words }}</td>{% endfor %}</tr>
{% endfor -%}
</tbody>
</table>
</div>
{%- for words in shown.notes %}
<p class="note">{{ words }}</p>
{%- endfor %}
{%- endmacro -%}

"""
    + PICTURE
    + OPENING
    + """\
<header>
<h1>{{ page.title }}</h1>
<p class="muted" dir="auto">{{ page.subtitle }}</p>
{% if page.headline -%}
<div class="headline">
<p>{{ page.headline.title }}<strong>{{ page.headline.value }}</strong>
<span class="muted">{{ page.headline.where }}</span></p>
{% if page.headline.factors -%}
<div>
<p class="muted">Its texts a second, as many times those of</p>
<ul>
{% for title, factor in page.headline.factors -%}
<li><b>{{ factor }}</b> <span dir="auto">{{ title }}</span></li>
{% endfor -%}
</ul>
</div>
{% endif -%}
</div>
{% endif -%}
</header>
<main>
<div class="two">
<section aria-labelledby="summary">
<h2 id="summary">In short</h2>
{% if page.summary -%}
<ul>
{% for words in page.summary %}<li dir="auto">{{ words }}</li>
{% endfor -%}
</ul>
{% else -%}
<p>Nothing was measured.</p>
{% endif -%}
</section>
<section aria-labelledby="losses">
<h2 id="losses">Where we lose</h2>
{% if page.losses -%}
<ul>
{% for words in page.losses %}<li dir="auto">{{ words }}</li>
{% endfor -%}
</ul>
{% else -%}
<p>{{ page.no_losses }}</p>
{% endif -%}
</section>
</div>
{% for section in page.sections -%}
{% set number = loop.index -%}
<section aria-labelledby="section-{{ number }}">
<h2 id="section-{{ number }}">{{ section.title }}</h2>
{% for words in section.words -%}
<p dir="auto">{{ words }}</p>
{% endfor -%}
{% if section.figures -%}
<div class="figures">
{% for shown, caption in section.figures %}{{ picture(shown, caption) }}
{% endfor -%}
</div>
{% endif -%}
{% for shown in section.tables -%}
{% if shown.detail %}<details><summary dir="auto">{{ shown.caption }}</summary>
{% endif %}{{ table(shown, "table-%d-%d" % (number, loop.index)) }}
{% if shown.detail %}</details>
{% endif -%}
{% endfor -%}
{% if section.facts -%}
<dl>
{% for name, words in section.facts -%}
<div><dt>{{ name }}</dt><dd dir="auto">{{ words }}</dd></div>
{% endfor -%}
</dl>
{% endif -%}
</section>
{% endfor -%}
</main>
</body>
</html>
"""
)
