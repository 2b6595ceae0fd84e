# What docs/gke_jobset.yaml runs: one commit's checkout with its environment.
# git archive --format=tar HEAD | docker build --tag=IMAGE --file=docs/gke.Dockerfile -
# For GPU nodes: --build-arg=EXTRAS="cuda gcs"
FROM python:3.11-slim
COPY . /attention_jax
WORKDIR /attention_jax
ARG EXTRAS="tpu gcs"
RUN ./launch.sh setup $EXTRAS
