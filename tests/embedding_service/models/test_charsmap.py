import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import Precompiled

from embedding_service.models.charsmap import precompiled

unhurried = settings(deadline=None)

# Letters stand alone; an accent would join the letter before it, where the library's reader has a quirk.
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=("Cs", "Cn", "M"))
RULES = st.dictionaries(CHARACTERS, st.text(CHARACTERS, max_size=4), max_size=60)


@unhurried
@given(rules=RULES, others=st.lists(CHARACTERS, max_size=20))
def test_each_character_becomes_what_its_rule_says_and_others_stay(rules, others):
    normalizer = Precompiled(precompiled(rules))

    for character in [*rules, *others]:
        assert rules.get(character, character) == normalizer.normalize_str(character)


@unhurried
@given(rules=RULES.filter(bool), data=st.data())
def test_a_text_is_replaced_character_by_character(rules, data):
    letters = st.sampled_from(sorted({*rules, *"xyz 世"}))
    # Between, so that no two characters are one to a reader of graphemes: a control character is none but its own (UAX 29,
    # GB4 and GB5), while a letter of the kind Prepend takes a dot along, and a return a line feed.
    text = "\x01".join(data.draw(st.lists(letters, max_size=10)))

    expected = "".join(rules.get(character, character) for character in text)

    assert expected == Precompiled(precompiled(rules)).normalize_str(text)


@unhurried
@given(rules=RULES)
def test_the_order_of_the_rules_does_not_matter(rules):
    assert precompiled(rules) == precompiled(dict(reversed(rules.items())))


def test_the_trie_is_whole_blocks_and_replacements_end_in_nul():
    built = precompiled({"ａ": "a", "ｂ": "a", "—": "--", "\u200b": ""})
    (size,) = struct.unpack_from("<I", built)

    assert size % 1024 == 0
    assert built[4 + size :] == b"\0--\0a\0"
