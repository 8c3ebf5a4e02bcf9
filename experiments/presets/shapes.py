"""Shapes: GenEval in miniature, on a laptop.

    python -m experiments.run shapes

Seen, seeds 0 1 2: held-out exact 0.46 -> 0.90, 0.88, 0.88, with guidance 2 at evaluation 0.67 -> 0.95, 0.96, 0.94; 10
minutes on 2 CPU cores (measured with constant rates, which gave 0.89, 0.87, 0.86 and 0.95, 0.96, 0.93: the cooldown costs
nothing).

What moves drawing most per second, seed 0, 60 iterations each (`--iterations 60` and the settings of the row), from an
earlier base with exact 0.40 and drawings that follow their plan 0.50.  Share of held-out drawings that follow their plan:
by the ODE, by the rollout's own rule in every transition (raw weights), and by the ODE with guidance 2; seconds per
iteration on one of two busy cores:

| window | denoising Adam | other | ODE | stochastic | guided | s |
|---|---|---|---|---|---|---|
| 3 in [1, 6) | 5e-4 | | 0.716 | | | 4.0 |
| 3 in [1, 6) | 5e-4 | groups of 16, 4 best and 4 worst trained | 0.731 | 0.873 | 0.860 | |
| 3 in [1, 6) | 5e-4 | 2 minibatches, flow clip 1e-3 | 0.698 | | | |
| 1 in [1, 6) | 1e-3 | | 0.522 | 0.616 | 0.676 | 2.7 |
| 1 in [1, 6) | 5e-4 | | 0.686 | 0.828 | 0.816 | 2.5 |
| 1 in [1, 6) | 2.5e-4 | | 0.739 | 0.911 | 0.905 | 2.4 |
| 1 in [1, 6) | 1.25e-4 | | 0.717 | | | 2.8 |

So one stochastic transition and half the rate: the update costs 0.6 of what it did with three, and the images stay clean,
while at 1e-3 their background fills with texture.  Below 2.5e-4 learning is only slower.  The clip range has no part in
it: with one optimizer step per iteration every ratio is 1.  Why the ODE lags behind the stochastic sampler, untested: CPS
draws the noise anew, so that a drawing that began wrong is decided again at each transition, and the ODE decides once.  With
one such transition a rollout is nearer to the ODE, and what is rewarded is nearer to what is judged.

What was seen before with the same base, 60 iterations of seed 0, and several settings changing from row to row: Flow-SDE at
noise 0.8 in [0, 5) reached 0.56 to 0.59 (ODE), CPS there 0.66, CPS in [1, 6) 0.72, in [2, 6) 0.67.  With ten steps a picture
is decided between t = 0.96 and 0.75, which is where the window lies.

How to learn sooner: 40 iterations with constant rates (`--iterations 40 --learning.cooldown 0 0 --evaluation.split
validation` and the settings of the row), judged on 480 validation prompts, a standard error of 0.02, of the present base.
Steps are `--learning.minibatches`, with `--learning.flow-clip 1.2e-4` where there are several; the average is
`--learning.ema-decay`; held is `--learning.leash-times`; exact by the ODE and with guidance 2, plans that are right,
drawings that follow theirs, and the energy of the grid in the last training drawings:

| steps | average | other | exact | guided | plan | follows | grid |
|---|---|---|---|---|---|---|---|
| 1 | 0.97 | this preset | 0.669 | 0.773 | 0.831 | 0.763 | 1.9e-4 |
| 1 | 0.97 | the same, seed 1 | 0.673 | 0.767 | 0.833 | 0.755 | 8.5e-5 |
| 1 | 0.97 | window of 1 in [3, 6) | 0.696 | 0.767 | 0.831 | 0.792 | 3.2e-4 |
| 1 | 0.9 | | 0.710 | 0.815 | 0.875 | 0.769 | 1.9e-4 |
| 2 | 0.97 | | 0.719 | 0.796 | 0.852 | 0.801 | 2.5e-4 |
| 2 | 0.97 | window of 1 in [3, 6) | 0.679 | 0.796 | 0.856 | 0.751 | 3.5e-4 |
| 2 | 0.97 | window of 3 in [1, 6) | 0.688 | 0.806 | 0.854 | 0.767 | 1.5e-4 |
| 2 | 0.97 | groups of 24 | 0.721 | 0.785 | 0.844 | 0.809 | 4.6e-4 |
| 2 | 0.97 | held at 0.25 and 0.5625 | 0.683 | 0.800 | 0.846 | 0.758 | 6.1e-6 |
| 4 | 0.97 | | 0.704 | 0.819 | 0.877 | 0.767 | 3.7e-4 |
| 4 | 0.9 | | 0.750 | 0.846 | 0.910 | 0.795 | 3.7e-4 |
| 2 | 0.9 | | 0.815 | 0.881 | 0.925 | 0.838 | 2.5e-4 |
| 2 | 0.8 | | 0.817 | 0.877 | 0.929 | 0.842 | 2.5e-4 |
| 2 | 0.9 | held at 0.25 and 0.5625 | 0.771 | 0.860 | 0.898 | 0.819 | 6.1e-6 |
| 2 | 0.9 | held at 0.3 | 0.794 | 0.875 | 0.908 | 0.842 | 7.1e-6 |
| 2 | 0.9 | held at 0.3, weight 0.005 | 0.792 | 0.844 | 0.892 | 0.842 | 3.1e-5 |

So two steps and an average that looks back over 10 iterations and not over 33 are worth 0.15 at 40 iterations; a single time
at which the end of a drawing is held takes the grid away like two.  They are not the preset, since what is sooner is not
better in the end.  With 2 steps, 0.9 and held at 0.3, 170 iterations (`--iterations 170 --learning.cooldown 110 170`), which
take as long as 300 of the preset, came to held-out exact 0.848 and 0.846 (seeds 0 1; the preset 0.896 and 0.879), plans
0.971 and 0.950, and drawings that follow them 0.835 and 0.849 (0.900 and 0.885).  With constant rates, seed 0, those were
0.721, 0.823, 0.799, 0.828, 0.800 after 20, 40, ... 100 iterations, exact 0.677, 0.812, 0.804, 0.835, 0.812, and guided
0.931 at the end: plans go on, and drawings by the ODE stay where they were at 40.

Neither the hold nor the average keeps them there.  One run of each, seed 0 (the preset; and `--iterations 170
--learning.cooldown 110 170 --learning.minibatches 2 --learning.flow-clip 1.2e-4`), whose weights were kept after every
iteration and averaged afterwards, by a script that is not here.  Exact by the ODE on the same 480 prompts, of the weights as
they are and of their averages:

| steps | iterations | none | 0.9 | 0.95 | 0.97 | 0.99 |
|---|---|---|---|---|---|---|
| 1, this preset | 100 | | 0.800 | 0.804 | 0.810 | |
| | 200 | | 0.881 | | 0.881 | |
| | 300, cooled down from 200 | 0.921 | 0.919 | | 0.917 | 0.900 |
| 2, not held | 100 | 0.829 | 0.846 | | 0.856 | |
| | 170, cooled down from 110 | 0.846 | 0.844 | | 0.846 | |

From 100 iterations on the average matters little.  Two steps come to 0.85 sooner and stay there; each of them sees half as
many drawings, at the same rate, which may be why.
"""

from unigrpo_jax.config import LearningConfig, ModelConfig, RolloutConfig, RunConfig


def config() -> RunConfig:
    """The main job."""
    return RunConfig(
        name="shapes",
        iterations=300,
        model=ModelConfig(family="bagel", unroll=4),
        rollout=RolloutConfig(
            prompts_per_iteration=12, step_rule="cps", noise_level=0.8, window_size=1, window_range=(1, 6)
        ),
        learning=LearningConfig(
            group_size=8, reasoning_lr=3e-4, denoising_lr=2.5e-4, mse_weight=0.005, ema_decay=0.97, cooldown=(200, 300)
        ),
    )
