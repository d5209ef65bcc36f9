"An engine whose process dies of one kind of request: what a fleet is tried on."

import os

from psr_nb.engines.choose import open_engine

DEADLY = 7  # a prompt that ends with this id


def deadly(model, settings):
    "The engine of the settings, which ends its process when it begins to work on a deadly prompt."
    engine = open_engine(model, settings)
    submit, step, asked = engine.submit, engine.step, []

    def noting(key, request):
        asked.append(request.prompt_ids[-1])
        submit(key, request)

    def dying():
        if DEADLY in asked:
            os._exit(9)
        asked.clear()
        return step()

    engine.submit, engine.step = noting, dying
    return engine
