"""Regression problems with certified answers: NIST's Statistical Reference Datasets.

Each is (design matrix, observations, certified coefficients). They are facts, published by the
National Institute of Standards and Technology at https://www.itl.nist.gov/div898/strd.
"""

import numpy as np

from jaxqr.cli.longley import CERTIFIED, DESIGN, RESPONSE

# x, y
_FILIP = """
-6.860120914 0.8116  -4.324130045 0.9072  -4.358625055 0.9052
-4.358426747 0.9039  -6.955852379 0.8053  -6.661145254 0.8377
-6.355462942 0.8667  -6.118102026 0.8809  -7.115148017 0.7975
-6.815308569 0.8162  -6.519993057 0.8515  -6.204119983 0.8766
-5.853871964 0.8885  -6.109523091 0.8859  -5.79832982 0.8959
-5.482672118 0.8913  -5.171791386 0.8959  -4.851705903 0.8971
-4.517126416 0.9021  -4.143573228 0.909  -3.709075441 0.9139
-3.499489089 0.9199  -6.300769497 0.8692  -5.953504836 0.8872
-5.642065153 0.89  -5.031376979 0.891  -4.680685696 0.8977
-4.329846955 0.9035  -3.928486195 0.9078  -8.56735134 0.7675
-8.363211311 0.7705  -8.107682739 0.7713  -7.823908741 0.7736
-7.522878745 0.7775  -7.218819279 0.7841  -6.920818754 0.7971
-6.628932138 0.8329  -6.323946875 0.8641  -5.991399828 0.8804
-8.781464495 0.7668  -8.663140179 0.7633  -8.473531488 0.7678
-8.247337057 0.7697  -7.971428747 0.77  -7.676129393 0.7749
-7.352812702 0.7796  -7.072065318 0.7897  -6.774174009 0.8131
-6.478861916 0.8498  -6.159517513 0.8741  -6.835647144 0.8061
-6.53165267 0.846  -6.224098421 0.8751  -5.910094889 0.8856
-5.598599459 0.8919  -5.290645224 0.8934  -4.974284616 0.894
-4.64454848 0.8957  -4.290560426 0.9047  -3.885055584 0.9129
-3.408378962 0.9209  -3.13200249 0.9219  -8.726767166 0.7739
-8.66695597 0.7681  -8.511026475 0.7665  -8.165388579 0.7703
-7.886056648 0.7702  -7.588043762 0.7761  -7.283412422 0.7809
-6.995678626 0.7961  -6.691862621 0.8253  -6.392544977 0.8602
-6.067374056 0.8809  -6.684029655 0.8301  -6.378719832 0.8664
-6.065855188 0.8834  -5.752272167 0.8898  -5.132414673 0.8964
-4.811352704 0.8963  -4.098269308 0.9074  -3.66174277 0.9119
-3.2644011 0.9228
"""

_FILIP_CERTIFIED = """
-1467.48961422980 -2772.17959193342 -2316.37108160893 -1127.97394098372 -354.478233703349
-75.1242017393757 -10.8753180355343 -1.06221498588947 -0.0670191154593408
-0.00246781078275479 -0.0000402962525080404
"""

# What is added to the polynomial 1 + x + ... + x^5: symmetric about the middle.
_WAMPLER_HALF = [759, -2048, 2048, -2048, 2523, -2048, 2048, -2048, 1838, -2048]
_WAMPLER_DELTA = np.array([*_WAMPLER_HALF, 2048, *_WAMPLER_HALF[::-1]], dtype=np.float64)

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=np.float64)


def longley() -> Problem:
    """Employment in the United States on six economic series and a constant: 16 x 7."""
    return DESIGN, RESPONSE, CERTIFIED


def filip() -> Problem:
    """A polynomial of degree 10, the hardest of the set: 82 x 11, condition 1.8e15."""
    x, y = _numbers(_FILIP).reshape(82, 2).T
    return np.vander(x, 11, increasing=True), y, _numbers(_FILIP_CERTIFIED)


def wampler(number: int) -> Problem:
    """A polynomial of degree 5 at x = 0, ..., 20; numbers 3 to 5 with growing residuals."""
    x = np.arange(21.0)
    ratio = 0.1 if number == 2 else 1.0
    certified = np.array([1, 0.1, 0.01, 0.001, 0.0001, 0.00001]) if number == 2 else np.ones(6)
    added = {3: 1.0, 4: 100.0, 5: 10000.0}.get(number, 0.0)
    observed = sum((ratio * x) ** i for i in range(6)) + added * _WAMPLER_DELTA
    return np.vander(x, 6, increasing=True), observed, certified


PROBLEMS = {
    "Longley": longley(),
    "Filip": filip(),
    **{f"Wampler {number}": wampler(number) for number in range(1, 6)},
}


def correct_digits(x: np.ndarray, certified: np.ndarray) -> float:
    """-log10 of the largest relative error of a coefficient, at most 15; 0 where none is right."""
    error = np.max(np.abs((np.asarray(x, np.float64) - certified) / certified))
    if not error < 1:
        return 0.0
    return float(min(15.0, -np.log10(max(error, 1e-15))))
