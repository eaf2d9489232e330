"""Answers about what a scene holds, compared with the scene."""

import numpy as np

from digit_scenes.questions import Tasks, ask
from digit_scenes.scenes import COLOUR_NAMES


def check_contents(random: np.random.Generator, scene, tasks: Tasks) -> None:
    """Ask for colours, counts and existence, and compare the answers."""
    q = ask(random, scene, "colour", tasks)
    labels = [d.label for d in scene.digits]
    assert (q is None) == all(labels.count(label) > 1 for label in labels)
    if q is not None:
        same = {COLOUR_NAMES[d.colour] for d in scene.digits if str(d.label) in q.text}
        assert same == {q.answer}

    for _ in range(4):
        q = ask(random, scene, "counting", tasks)
        matching = [d for d in scene.digits if d.name.split()[0] in q.text]
        expected = scene.digits if q.text == "How many digits?" else matching
        assert q.answer == str(len(expected))

        q = ask(random, scene, "existence", tasks)
        name = q.text.split(" ", 3)[3][:-1]
        assert q.answer == ("Yes" if name in {d.name for d in scene.digits} else "No")
        if q.answer == "No":
            label, colour = name[-1], name.split()[0]
            labels = {str(d.label) for d in scene.digits}
            assert q.category != "adversarial" or label in labels
            assert q.category != "popular" or (
                label not in labels and any(colour in d.name for d in scene.digits)
            )
