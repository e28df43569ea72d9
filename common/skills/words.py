"""Vocabulary that the skills share."""

from random import Random

NOUNS = tuple(
    "river stone cloud apple tiger music table light paper sugar ocean horse bread chair plant storm glass smile night "
    "world money heart dream train clock queen sword field grape boat bird cat dog fox hat cup lamp ring road tree "
    "door farm ship shoe star song wall wolf bear book card coin desk fish frog goat hill king leaf moon nest pear "
    "rose seed sock wind wing".split()
)
GOOD = tuple("happy kind bright clean calm brave lovely fresh sweet strong gentle warm".split())
BAD = tuple("sad rude dull dirty angry weak awful rotten bitter broken cruel sick".split())
PLAIN = tuple("old young red blue green tall small big round quiet dark long wooden yellow heavy thin".split())


def word(rng: Random) -> str:
    """Draw a known noun or, half of the time, an invented word of three to five letters with a vowel in it."""
    if rng.random() < 0.5:
        return rng.choice(NOUNS)
    letters = [rng.choice("abcdefghiklmnoprstuvw") for _ in range(rng.randint(3, 5))]
    letters[rng.randrange(len(letters))] = rng.choice("aeiou")
    return "".join(letters)
