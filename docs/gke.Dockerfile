# What docs/gke_jobset.yaml runs: one commit's checkout with its environment.
# git archive --format=tar HEAD | docker build --tag=IMAGE --file=docs/gke.Dockerfile -
FROM python:3.11-slim
COPY . /attention_jax
WORKDIR /attention_jax
RUN ./launch.sh setup tpu gcs
