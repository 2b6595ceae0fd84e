"""The part of a JobSet's API that the launcher writes, as a JSON schema: Kubernetes drops a field that it does not know.

Names, types, required fields and values of https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 (JobSet 0.10, its custom
resource definition config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml) and of Kubernetes 1.34 for Job (batch/v1) and Pod
(core/v1): https://kubernetes.io/docs/reference/kubernetes-api. What is not written is left out, so it counts as unknown.
"""

from typing import Any

TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
QUANTITY = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGTPE]i?)?$"}]}
LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"


def record(required: str = "", **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


def texts(pattern: str = "") -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": "string", "pattern": pattern}}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


VARIABLE = record(
    "name",
    name={"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"},
    value=TEXT,
    valueFrom=record("fieldRef", fieldRef=record("fieldPath", apiVersion=TEXT, fieldPath=TEXT)),
)
CONTAINER = record(
    "name image",
    name={"type": "string", "pattern": LABEL},
    image=TEXT,
    workingDir=TEXT,
    command=listed(TEXT),
    env=listed(VARIABLE),
    resources=record(limits={"type": "object", "additionalProperties": QUANTITY}),
    volumeMounts=listed(
        record("name mountPath", name=TEXT, mountPath={"type": "string", "pattern": "^/[^:]*$"}, readOnly=FLAG)
    ),
)
POD = record(
    "containers",
    restartPolicy=one_of("Always", "OnFailure", "Never"),
    serviceAccountName=TEXT,
    terminationGracePeriodSeconds=COUNT,
    nodeSelector=texts(r"^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"),
    containers=listed(CONTAINER),
    volumes=listed(record("name", name=TEXT, emptyDir=record(medium=one_of("", "Memory", "HugePages"), sizeLimit=QUANTITY))),
)
JOB_RULE = record(
    "action",
    action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
    onExitCodes=record("operator values", containerName=TEXT, operator=one_of("In", "NotIn"), values=listed(COUNT)),
    onPodConditions=listed(record("type", type=TEXT, status=one_of("True", "False", "Unknown"))),
)
JOB = record(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode=one_of("NonIndexed", "Indexed"),
    backoffLimit=COUNT,
    podFailurePolicy=record("rules", rules=listed(JOB_RULE)),
    template=record("spec", metadata=record(labels=texts(), annotations=texts()), spec=POD),
)
REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")
RULE = record(
    "action name",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action=one_of(
        "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob", "RestartJobAndIgnoreMaxRestarts"
    ),
    onJobFailureReasons=listed(one_of(*REASONS)),
    targetReplicatedJobs=listed(TEXT),
)
JOBSET = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=record("name", name={"type": "string", "pattern": LABEL}, namespace=TEXT, annotations=texts(), labels=texts()),
    spec=record(
        "replicatedJobs",
        network=record(enableDNSHostnames=FLAG, subdomain=TEXT, publishNotReadyAddresses=FLAG),
        failurePolicy=record(
            maxRestarts=COUNT, restartStrategy=one_of("Recreate", "BlockingRecreate", "InPlaceRestart"), rules=listed(RULE)
        ),
        replicatedJobs=listed(
            record("name template", name=TEXT, groupName=TEXT, replicas=COUNT, template=record("spec", spec=JOB))
        ),
    ),
)
