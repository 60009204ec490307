"""Renaming rules: our names of tensors to those in the files of each kind of model (see `layers.from_weights`)."""

_BERT_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
}

BERT = {
    **_BERT_EMBEDDINGS,
    "encoder.layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "encoder.layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "encoder.layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "encoder.layers.{}.attention.out": "encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.feed_forward.up": "encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.feed_forward.down": "encoder.layer.{}.output.dense",
    "encoder.layers.{}.feed_forward_norm": "encoder.layer.{}.output.LayerNorm",
    "pooler": "pooler.dense",
}

DISTILBERT = {
    **_BERT_EMBEDDINGS,
    "encoder.layers.{}.attention.query": "transformer.layer.{}.attention.q_lin",
    "encoder.layers.{}.attention.key": "transformer.layer.{}.attention.k_lin",
    "encoder.layers.{}.attention.value": "transformer.layer.{}.attention.v_lin",
    "encoder.layers.{}.attention.out": "transformer.layer.{}.attention.out_lin",
    "encoder.layers.{}.attention_norm": "transformer.layer.{}.sa_layer_norm",
    "encoder.layers.{}.feed_forward.up": "transformer.layer.{}.ffn.lin1",
    "encoder.layers.{}.feed_forward.down": "transformer.layer.{}.ffn.lin2",
    "encoder.layers.{}.feed_forward_norm": "transformer.layer.{}.output_layer_norm",
}

# {} {}: the group, the layer within it
_ALBERT_LAYER = "encoder.albert_layer_groups.{}.albert_layers.{}"
ALBERT = {
    **_BERT_EMBEDDINGS,
    "widening": "encoder.embedding_hidden_mapping_in",
    "groups.{}.{}.attention.query": f"{_ALBERT_LAYER}.attention.query",
    "groups.{}.{}.attention.key": f"{_ALBERT_LAYER}.attention.key",
    "groups.{}.{}.attention.value": f"{_ALBERT_LAYER}.attention.value",
    "groups.{}.{}.attention.out": f"{_ALBERT_LAYER}.attention.dense",
    "groups.{}.{}.attention_norm": f"{_ALBERT_LAYER}.attention.LayerNorm",
    "groups.{}.{}.feed_forward.up": f"{_ALBERT_LAYER}.ffn",
    "groups.{}.{}.feed_forward.down": f"{_ALBERT_LAYER}.ffn_output",
    "groups.{}.{}.feed_forward_norm": f"{_ALBERT_LAYER}.full_layer_layer_norm",
    "pooler": "pooler",
}

VIT = {
    "cls_token": "embeddings.cls_token",
    "distillation_token": "embeddings.distillation_token",
    "positions": "embeddings.position_embeddings",
    "patches": "embeddings.patch_embeddings.projection",
    "encoder.layers.{}.attention.query": "encoder.layer.{}.attention.attention.query",
    "encoder.layers.{}.attention.key": "encoder.layer.{}.attention.attention.key",
    "encoder.layers.{}.attention.value": "encoder.layer.{}.attention.attention.value",
    "encoder.layers.{}.attention.out": "encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention_norm": "encoder.layer.{}.layernorm_before",
    "encoder.layers.{}.feed_forward.up": "encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.feed_forward.down": "encoder.layer.{}.output.dense",
    "encoder.layers.{}.feed_forward_norm": "encoder.layer.{}.layernorm_after",
    "encoder.norm": "layernorm",
    "pooler": "pooler.dense",
}

# Tensors that older files carry and nothing needs.
IGNORED = ("embeddings.position_ids", "embeddings.token_type_ids", "embeddings.mask_token")
# Endings of names in files that came from TensorFlow.
OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
