"""The page's frame. It knows sections, tables and pictures; what is in them is decided in page.py."""

from typing import Final

PICTURE: Final = """\
{%- macro picture(shown, caption) -%}
<figure>
<div class="wide" role="region" aria-label="{{ caption }}" tabindex="0">
<picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ shown.dark }}">
<img src="{{ shown.light }}" alt="{{ shown.alt }}"{% if shown.min_width %} style="min-width: {{ shown.min_width }}px"{% endif %}>
</picture>
</div>
<figcaption>{{ caption }}</figcaption>
</figure>
{%- endmacro -%}

"""
"""The macro `picture(shown, caption)` of a `pictures.Picture`."""

OPENING: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ page.title }}</title>
<style>{{ style }}</style>
</head>
<body>
"""
"""To the beginning of the body, of a page with *page.title* and *style*; nothing is fetched from anywhere."""

TEMPLATE: Final = (
    """\
{%- macro cell(value) -%}
{%- if value.share is not none %}<td class="number bar" style="--share: {{ '%.3f' % value.share }}">{{ value.words }}</td>
{%- elif value.kind == "prose" %}<td class="prose" dir="auto">{{ value.words }}</td>
{%- else %}<td{% if value.kind %} class="{{ value.kind }}"{% endif %} dir="auto">{{ value.words }}</td>
{%- endif -%}
{%- endmacro -%}

{%- macro table(shown, id) -%}
<div class="wide" role="region" aria-labelledby="{{ id }}" tabindex="0">
<table>
<caption id="{{ id }}">{{ shown.caption }}</caption>
<thead><tr>
{%- for column in shown.columns %}<th scope="col"{% if column.kind %} class="{{ column.kind }}"{% endif %}>{{ column.words }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in shown.rows -%}
<tr><th scope="row"{% if row[0].kind %} class="{{ row[0].kind }}"{% endif %} dir="auto">{{ row[0].words }}</th>
{%- for value in row[1:] %}{{ cell(value) }}{% endfor %}</tr>
{% endfor -%}
</tbody>
</table>
</div>
{%- endmacro -%}

"""
    + PICTURE
    + OPENING
    + """\
<header>
<h1 dir="auto">{{ page.title }}</h1>
<p class="muted">{{ page.subtitle }}</p>
<p class="headline">{{ page.headline.name }}<strong>{{ page.headline.value }}</strong>
<span class="muted">{{ page.headline.interval }}</span></p>
<dl>
{% for name, words, is_code in page.summary -%}
{% if is_code %}<div class="long"><dt>{{ name }}</dt><dd><code>{{ words }}</code></dd></div>
{% else %}<div><dt>{{ name }}</dt><dd dir="auto">{{ words }}</dd></div>
{% endif -%}
{% endfor -%}
</dl>
</header>
<main>
{% for section in page.sections -%}
{% set number = loop.index -%}
<section aria-labelledby="section-{{ number }}">
<h2 id="section-{{ number }}">{{ section.title }}</h2>
{% for words in section.words -%}
<p>{{ words }}</p>
{% endfor -%}
{% if section.picture %}{{ picture(section.picture, section.picture_caption) }}
{% endif -%}
{% for shown in section.tables -%}
{% if shown.folded %}<details><summary>{{ shown.folded }}</summary>
{% endif %}{{ table(shown, "table-%d-%d" % (number, loop.index)) }}
{% if shown.folded %}</details>
{% endif -%}
{% endfor -%}
</section>
{% endfor -%}
</main>
</body>
</html>
"""
)
