"""In-context learning under the lens: what weights do, what a layer has learned, what it knows.

Weight constructions make linear attention run a known algorithm exactly. `induced_weights` and
`effective_learning_rate` ask any `apply_fn(params, tokens)` which linear model its answers come
from. `similarity_of_errors` and `match_iterates` say which iterate of an algorithm errs alike;
`linear_probe` what can be read off hidden states, and `shuffled_probe` what can be read off them
by chance. `mesa_layer` is the layer that solves its ridge regression at every token.
"""

from dynamics.measure import induced_weights as weights_induced
from dynamics.measure import linear_probe as probes
from dynamics.measure import mesa_layer as mesa_layers
from dynamics.measure import similarity_of_errors as similarities
from dynamics.measure import weight_constructions

gradient_descent_construction = weight_constructions.gradient_descent_construction
gradient_descent_plus_plus_construction = (
    weight_constructions.gradient_descent_plus_plus_construction
)
newton_construction = weight_constructions.newton_construction
induced_weights = weights_induced.induced_weights
effective_learning_rate = weights_induced.effective_learning_rate
similarity_of_errors = similarities.similarity_of_errors
match_iterates = similarities.match_iterates
linear_probe = probes.linear_probe
shuffled_probe = probes.shuffled_probe
mesa_layer = mesa_layers.mesa_layer
