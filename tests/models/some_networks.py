"""Networks of somebody else, as a study may name them."""

import keras
from keras import layers


def dense(n_channels, n_classes, units=16, dropout=0.0):
    """Layers that the compiled loops know."""
    return keras.Sequential(
        [
            layers.Input((n_channels,)),
            layers.Dense(units, activation="relu"),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(dropout),
            layers.Dense(n_classes, activation="softmax"),
        ]
    )


def convolutional(n_channels, n_classes):
    """Layers that the compiled loops know, positions among them."""
    return keras.Sequential(
        [
            layers.Input((n_channels,)),
            layers.Reshape((n_channels, 1)),
            layers.Conv1D(3, 9, activation="relu"),
            layers.AveragePooling1D(2),
            layers.BatchNormalization(momentum=0.9),
            layers.Conv1D(n_classes, 1),
            layers.GlobalAveragePooling1D(),
            layers.Softmax(),
        ]
    )


def residual(n_channels, n_classes, units=16, activation="gelu"):
    """A graph, which they do not know."""
    spectrum = keras.Input((n_channels,))
    first = layers.Dense(units, activation=activation)(layers.LayerNormalization()(spectrum))
    return keras.Model(spectrum, layers.Dense(n_classes, activation="softmax")(layers.Add()([first, first])))


def with_own_optimizer(n_channels, n_classes):
    model = dense(n_channels, n_classes)
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), loss="categorical_crossentropy")
    return model


@keras.saving.register_keras_serializable(package="somebody")
class Squared(layers.Layer):
    """A layer of somebody else."""

    def call(self, inputs):
        return inputs * inputs


def squared(n_channels, n_classes):
    return keras.Sequential([layers.Input((n_channels,)), Squared(), layers.Dense(n_classes, activation="softmax")])


def logits(n_channels, n_classes):
    return keras.Sequential([layers.Input((n_channels,)), layers.Dense(n_classes)])


def five_classes(n_channels, n_classes):
    return dense(n_channels, 5)


def no_model(n_channels, n_classes):
    return [n_channels, n_classes]


def for_images(n_channels, n_classes):
    return keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(n_classes, activation="softmax")])


class Unregistered(layers.Layer):
    def call(self, inputs):
        return inputs


def unregistered(n_channels, n_classes):
    return keras.Sequential(
        [layers.Input((n_channels,)), Unregistered(), layers.Dense(n_classes, activation="softmax")]
    )
