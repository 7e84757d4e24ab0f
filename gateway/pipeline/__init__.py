"""The offline wing: infer -> dataset -> finetune -> evaluate -> promote. Its files are named after the stages."""
