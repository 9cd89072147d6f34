"""A model with a fault of its own, which only its second step and later ones meet."""


class Raises:
    provenance = {}  # noqa: RUF012

    def generate(self, params, source, on_step):
        on_step(1, params.num_inference_steps)
        if params.num_inference_steps > 1:
            raise ArithmeticError("the model divided by zero")
        from tests.models.steady import Steady

        yield Steady._paint(params, source, params.seed)


def load(spec, device):
    return Raises()
