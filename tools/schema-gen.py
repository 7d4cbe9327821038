#!/usr/bin/env python3
"""Writes the static table of all types of Kubernetes 1.36.

Reads two unpacked crates of the cargo registry: `k8s-openapi` (definition names, JSON names, types,
descriptions, requiredness, list strategies) and `k8s-pb` (protobuf field numbers). What neither says
stands below as hand tables. Writes `src/kinds/schema/table.rs` and `src/kinds/schema/docs.z` (the
descriptions, zlib). Run from the repository's root after a change:

    python3 tools/schema-gen.py
"""

import glob
import hashlib
import os
import re
import sys
import zlib

K8S_OPENAPI = "k8s-openapi-0.29.0"
K8S_PB = "k8s-pb-0.9.0"
META = "io.k8s.apimachinery.pkg.apis.meta.v1."

# ---------------------------------------------------------------- hand tables

# List maps with more than one key (k8s-openapi knows only the key of patches).
LIST_MAP_KEYS = {
    "Container.ports": "containerPort protocol",
    "EphemeralContainer.ports": "containerPort protocol",
    "PodSpec.topologySpreadConstraints": "topologyKey whenUnsatisfiable",
    "ServiceSpec.ports": "port protocol",
    "ResourceClaimStatus.devices": "driver device pool shareID",
}

# Lists that patches merge by key and apply takes as a whole.
ATOMIC_BUT_MERGED = {"JobStatus.conditions": "type", "PodStatus.hostIPs": "ip"}

# Lists that apply merges by key and strategic merge patches replace.
MAP_BUT_REPLACED = {
    "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyStatus.conditions",
    "io.k8s.api.admissionregistration.v1beta1.ValidatingAdmissionPolicyStatus.conditions",
    "io.k8s.api.certificates.v1.CertificateSigningRequestStatus.conditions",
    "io.k8s.api.core.v1.ResourceRequirements.claims",
    "io.k8s.api.core.v1.ResourceStatus.resources",
    "io.k8s.api.resource.v1.ResourceClaimStatus.devices",
    "io.k8s.api.resource.v1.AllocatedDeviceStatus.conditions",
    "io.k8s.api.resource.v1beta1.ResourceClaimStatus.devices",
    "io.k8s.api.resource.v1beta1.AllocatedDeviceStatus.conditions",
    "io.k8s.api.resource.v1beta2.ResourceClaimStatus.devices",
    "io.k8s.api.resource.v1beta2.AllocatedDeviceStatus.conditions",
}

# Primitive lists that patches merge as sets.
MERGED_SETS = {"ObjectMeta.finalizers", "NodeSpec.podCIDRs"}

# Patches drop the keys they do not name.
RETAIN_KEYS = {
    "DeploymentSpec.strategy",
    "PodSpec.volumes",
    "PodSpec.resourceClaims",
    "PodStatus.resourceClaimStatuses",
}

# Structs that patches replace.
REPLACED = {"PodDisruptionBudgetSpec.selector"}

# Structs that apply takes as a whole, wherever they stand.
ATOMIC_TYPES = set(
    """
    io.k8s.api.admissionregistration.v1.MatchResources
    io.k8s.api.admissionregistration.v1.NamedRuleWithOperations
    io.k8s.api.admissionregistration.v1.ParamKind
    io.k8s.api.admissionregistration.v1.ParamRef
    io.k8s.api.admissionregistration.v1.Variable
    io.k8s.api.admissionregistration.v1beta1.MatchResources
    io.k8s.api.admissionregistration.v1beta1.NamedRuleWithOperations
    io.k8s.api.admissionregistration.v1beta1.ParamKind
    io.k8s.api.admissionregistration.v1beta1.ParamRef
    io.k8s.api.admissionregistration.v1beta1.Variable
    io.k8s.api.autoscaling.v1.CrossVersionObjectReference
    io.k8s.api.core.v1.ConfigMapKeySelector
    io.k8s.api.core.v1.EndpointAddress
    io.k8s.api.core.v1.EndpointPort
    io.k8s.api.core.v1.FileKeySelector
    io.k8s.api.core.v1.LocalObjectReference
    io.k8s.api.core.v1.NodeSelector
    io.k8s.api.core.v1.NodeSelectorTerm
    io.k8s.api.core.v1.ObjectFieldSelector
    io.k8s.api.core.v1.ObjectReference
    io.k8s.api.core.v1.ResourceFieldSelector
    io.k8s.api.core.v1.ScopeSelector
    io.k8s.api.core.v1.SecretKeySelector
    io.k8s.api.core.v1.SecretReference
    io.k8s.api.core.v1.TopologySelectorTerm
    io.k8s.api.core.v1.TypedLocalObjectReference
    io.k8s.api.discovery.v1.EndpointPort
    io.k8s.api.networking.v1.ServiceBackendPort
    io.k8s.api.rbac.v1.RoleRef
    io.k8s.api.rbac.v1.Subject
    io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector
    io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference
    """.split()
)
GRANULAR_FIELDS = {"PersistentVolumeSpec.claimRef"}

METRICS = "io.k8s.metrics.pkg.apis.metrics.v1beta1."

# Types that no crate has, `name: field type number, …` (`!` required, `[]` list, `{}` map; 0: JSON only).
EXTRA_TYPES = """
io.k8s.apimachinery.pkg.apis.meta.v1.CreateOptions: apiVersion string 0, kind string 0, dryRun []string 1, fieldManager string 3, fieldValidation string 4
io.k8s.apimachinery.pkg.apis.meta.v1.UpdateOptions: apiVersion string 0, kind string 0, dryRun []string 1, fieldManager string 2, fieldValidation string 3
io.k8s.apimachinery.pkg.apis.meta.v1.PatchOptions: apiVersion string 0, kind string 0, dryRun []string 1, force bool 2, fieldManager string 3, fieldValidation string 4
io.k8s.apimachinery.pkg.apis.meta.v1.GetOptions: apiVersion string 0, kind string 0, resourceVersion string 1
io.k8s.apimachinery.pkg.apis.meta.v1.ListOptions: apiVersion string 0, kind string 0, labelSelector string 1, fieldSelector string 2, watch bool 3, resourceVersion string 4, timeoutSeconds int64 5, limit int64 7, continue string 8, allowWatchBookmarks bool 9, resourceVersionMatch string 10, sendInitialEvents bool 11
io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent: type !string 1, object !raw 2
io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata: apiVersion string 0, kind string 0, metadata ObjectMeta 1
io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList: apiVersion string 0, kind string 0, metadata ListMeta 1, items ![]PartialObjectMetadata 2
io.k8s.apimachinery.pkg.apis.meta.v1.TableColumnDefinition: name !string 0, type !string 0, format !string 0, description !string 0, priority !int32 0
io.k8s.apimachinery.pkg.apis.meta.v1.TableRowCondition: type !string 0, status !string 0, reason string 0, message string 0
io.k8s.apimachinery.pkg.apis.meta.v1.TableRow: cells ![]any 0, conditions []TableRowCondition 0, object raw 0
io.k8s.apimachinery.pkg.apis.meta.v1.Table: apiVersion string 0, kind string 0, metadata ListMeta 0, columnDefinitions ![]TableColumnDefinition 0, rows ![]TableRow 0
io.k8s.apimachinery.pkg.runtime.TypeMeta: apiVersion string 1, kind string 2
io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics: name !string 0, usage !{}quantity 0
io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics: apiVersion string 0, kind string 0, metadata ObjectMeta 0, timestamp !time 0, usage !{}quantity 0, window !string 0
io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics: apiVersion string 0, containers ![]io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics 0, kind string 0, metadata ObjectMeta 0, timestamp !time 0, window !string 0
"""
EXTRA_KINDS = {META + k: ("meta.k8s.io", "v1") for k in ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")}
EXTRA_KINDS |= {METRICS + k: ("metrics.k8s.io", "v1beta1") for k in ("NodeMetrics", "PodMetrics")}
EXTRA_LISTS = {METRICS + "NodeMetrics": "NodeMetricsList", METRICS + "PodMetrics": "PodMetricsList"}
# Their descriptions: of the type, of a field of one type, of a field of them all.
EXTRA_DOCS = {
    METRICS + "ContainerMetrics": "ContainerMetrics sets resource usage metrics of a container.",
    METRICS + "NodeMetrics": "NodeMetrics sets resource usage metrics of a node.",
    METRICS + "PodMetrics": "PodMetrics sets resource usage metrics of a pod.",
    METRICS + "ContainerMetrics.name": "Container name corresponding to the one from pod.spec.containers.",
    METRICS + "PodMetrics.containers": "Metrics for all containers are collected within the same time window.",
    METRICS + "usage": "The memory usage is the memory working set.",
    METRICS + "timestamp": "The following fields define time interval from which metrics were collected from the interval [Timestamp-Window, Timestamp].",
}
# Fields that all kinds have are described as Pod's.
EXTRA_DOCS_OF_KINDS = ("apiVersion", "kind", "metadata")

# Protobuf numbers that k8s-pb does not have yet.
NUMBERS = {
    "BasicDevice.nodeAllocatableResourceMappings": 12,
    "CSIDriverSpec.preventPodSchedulingIfMissing": 11,
    "Device.nodeAllocatableResourceMappings": 13,
    "DeviceAttribute.bools": 7,
    "DeviceAttribute.ints": 6,
    "DeviceAttribute.strings": 8,
    "DeviceAttribute.versions": 9,
    "ImageVolumeStatus.imageRef": 1,
    "NodeAllocatableResourceClaimStatus.containers": 2,
    "NodeAllocatableResourceClaimStatus.resourceClaimName": 1,
    "NodeAllocatableResourceClaimStatus.resources": 3,
    "NodeAllocatableResourceMapping.allocationMultiplier": 2,
    "NodeAllocatableResourceMapping.capacityKey": 1,
    "PodCertificateRequestSpec.stubPKCS10Request": 12,
    "PodSchedulingGroup.podGroupName": 1,
    "PodSpec.schedulingGroup": 43,
    "PodStatus.nodeAllocatableResourceClaimStatuses": 21,
    "ResourceHealth.message": 6,
    "VolumeMountStatus.volumeStatus": 5,
    "VolumeStatus.image": 1,
}

# Go structs that others embed: their fields stand in the outer JSON object.
EMBEDDED = {
    "deviceconfiguration",
    "ephemeralcontainercommon",
    "ingressrulevalue",
    "localobjectreference",
    "persistentvolumesource",
    "probehandler",
    "rule",
    "rulewithoperations",
    "volumesource",
}

# Optional numbers and booleans that are plain values in Go: zero is the same as absent. All others
# are pointers, where zero says something. By field name, then the exceptions.
VALUE_SCALARS = set(
    """
    minReadySeconds numberAvailable numberUnavailable updatedNumberScheduled replicas readyReplicas availableReplicas
    unavailableReplicas updatedReplicas fullyLabeledReplicas currentReplicas active failed succeeded partition hostPort
    signal count deprecatedCount failureThreshold initialDelaySeconds periodSeconds successThreshold timeoutSeconds
    nodePort healthCheckNodePort number start observedGeneration sizeBytes paused authenticated denied readOnly stdin
    stdinOnce tty chapAuthDiscovery chapAuthSession unschedulable hostIPC hostNetwork hostPID sslEnabled
    publishNotReadyAddresses clusterScope globalDefault matchingPrecedence handSize queueLengthLimit queues
    currentHealthy desiredHealthy disruptionsAllowed expectedPods value code
    retryAfterSeconds generation allowWatchBookmarks watch limit force deprecated nullable uniqueItems exclusiveMaximum
    exclusiveMinimum x-kubernetes-embedded-resource x-kubernetes-int-or-string preserveUnknownFields priority namespaced targetPort
    io.k8s.api.resource.v1beta1.ResourceSliceSpec.allNodes
    """.split()
)
POINTER_EXCEPTIONS = set(
    """
    AzureDiskVolumeSource.readOnly CSIVolumeSource.readOnly DeploymentSpec.replicas ReplicaSetSpec.replicas
    ReplicationControllerSpec.replicas StatefulSetSpec.replicas MutatingWebhook.timeoutSeconds
    ValidatingWebhook.timeoutSeconds RollingUpdateStatefulSetStrategy.partition
    HorizontalPodAutoscalerStatus.observedGeneration ClientIPConfig.timeoutSeconds VolumeNodeResources.count
    ListOptions.timeoutSeconds PodSpec.priority
    """.split()
)

# Optional strings that are pointers in Go: the empty string says something.
POINTER_STRINGS = set(
    """
    matchPolicy failurePolicy MutatingWebhook.reinvocationPolicy parameterNotFoundAction MutatingWebhook.sideEffects
    ValidatingWebhook.sideEffects NamedRuleWithOperations.scope RuleWithOperations.scope ServiceReference.path
    Validation.reason WebhookClientConfig.url selectPolicy timeZone completionMode managedBy podReplacementPolicy
    failedIndexes PodFailurePolicyOnExitCodesRequirement.containerName succeededIndexes LeaseSpec.holderIdentity
    preferredHolder LeaseSpec.strategy localhostProfile AzureDiskVolumeSource.cachingMode AzureDiskVolumeSource.fsType
    AzureDiskVolumeSource.kind ClusterTrustBundleProjection.name ClusterTrustBundleProjection.signerName
    Container.restartPolicy EphemeralContainer.restartPolicy stopSignal CSIVolumeSource.fsType EndpointAddress.nodeName
    appProtocol endpointsNamespace HostPathVolumeSource.type initiatorName ipMode LocalVolumeSource.fsType
    PersistentVolumeClaimSpec.storageClassName volumeAttributesClassName volumeMode currentVolumeAttributesClassName
    PodDNSConfigOption.value resourceClaimTemplateName PodResourceClaim.resourceClaimName
    PodResourceClaimStatus.resourceClaimName podGroupName fsGroupChangePolicy seLinuxChangePolicy
    supplementalGroupsPolicy hostnameOverride preemptionPolicy PodSpec.runtimeClassName PortStatus.error
    IngressPortStatus.error ResourceHealth.message procMount internalTrafficPolicy ipFamilyPolicy loadBalancerClass
    trafficDistribution nodeAffinityPolicy nodeTaintsPolicy TypedObjectReference.namespace mountPropagation
    recursiveReadOnly gmsaCredentialSpec gmsaCredentialSpecName runAsUserName Endpoint.hostname Endpoint.nodeName
    Endpoint.zone io.k8s.api.discovery.v1.EndpointPort.name io.k8s.api.discovery.v1.EndpointPort.protocol
    IngressClassParametersReference.apiGroup IngressClassParametersReference.namespace
    IngressClassParametersReference.scope ingressClassName NetworkPolicyPort.protocol unhealthyPodEvictionPolicy shareID
    Device.nodeName BasicDevice.nodeName io.k8s.api.resource.v1.ResourceSliceSpec.nodeName
    io.k8s.api.resource.v1beta2.ResourceSliceSpec.nodeName DeviceAttribute.string DeviceAttribute.version
    extendedResourceName distinctAttribute matchAttribute capacityKey DeviceTaintSelector.device
    DeviceTaintSelector.driver DeviceTaintSelector.pool CSIDriverSpec.fsGroupPolicy StorageClass.reclaimPolicy
    volumeBindingMode VolumeAttachmentSource.persistentVolumeName secretNamespace GRPCAction.service
    TypedLocalObjectReference.apiGroup TypedObjectReference.apiGroup HTTPIngressPath.pathType DeleteOptions.propagationPolicy
    Preconditions.uid Preconditions.resourceVersion WebhookClientConfig.url JSONSchemaProps.$ref JSONSchemaProps.x-kubernetes-list-type
    JSONSchemaProps.x-kubernetes-map-type CustomResourceSubresourceScale.labelSelectorPath ValidationRule.reason
    """.split()
)

# Optional structs that are plain values in Go: they are always there. All others are pointers.
VALUE_STRUCTS = set(
    """
    spec status metadata DaemonSetSpec.updateStrategy StatefulSetSpec.updateStrategy DeploymentSpec.strategy
    ReplicaSetSpec.template PodTemplate.template userInfo TokenReviewStatus.user Container.resources
    EphemeralContainer.resources PersistentVolumeClaimSpec.resources lastState ContainerStatus.state Event.source
    deprecatedSource Event.regarding kubeletEndpoint daemonEndpoints nodeInfo loadBalancer Endpoint.conditions
    limitResponse IngressServiceBackend.port AllocationResult.devices ResourceClaimSpec.devices
    NetworkPolicySpec.podSelector
    """.split()
)

# Required structs that are pointers in Go (all others are values).
POINTER_STRUCTS = set(
    """
    DaemonSetSpec.selector DeploymentSpec.selector ReplicaSetSpec.selector StatefulSetSpec.selector
    ScaleIOPersistentVolumeSource.secretRef ScaleIOVolumeSource.secretRef IPAddressSpec.parentRef
    """.split()
)

# Strings (and what is optional in OpenAPI) that Go writes also when they are empty.
ALWAYS_WRITTEN = set(
    """
    StatefulSetStatus.availableReplicas StatefulSetOrdinals.start FlowSchemaSpec.matchingPrecedence handSize
    queueLengthLimit queues currentHealthy desiredHealthy disruptionsAllowed expectedPods PriorityClass.value
    StatefulSetSpec.serviceName PodFailurePolicyOnPodConditionsPattern.status Event.reportingComponent
    io.k8s.api.core.v1.Event.reportingInstance NodeRuntimeHandler.name RoleRef.apiGroup DeviceRequest.deviceClassName
    TokenRequestStatus.token divisor NodeSystemInfo.architecture bootID containerRuntimeVersion kernelVersion
    kubeProxyVersion kubeletVersion NodeSystemInfo.machineID operatingSystem osImage NodeSystemInfo.systemUUID
    ContainerStatus.image ContainerStatus.imageID AttachedVolume.devicePath
    io.k8s.apimachinery.pkg.apis.meta.v1.Condition.message io.k8s.apimachinery.pkg.apis.meta.v1.Condition.reason
    """.split()
)

# Names that may be empty (`+default=""`), though k8s-openapi lists them as required.
MAY_BE_EMPTY = set(
    """
    ConfigMapEnvSource ConfigMapKeySelector ConfigMapProjection ConfigMapVolumeSource LocalObjectReference
    SecretEnvSource SecretKeySelector SecretProjection
    """.split()
)
# Required, and k8s-openapi does not say so.
ALSO_REQUIRED = {"io.k8s.api.events.v1.Event.eventTime"}

# Types that are JSON only.
NO_PROTOBUF = {META + t for t in ("APIResource", "ShardInfo", "WatchEvent", "Patch")} | {
    "io.k8s.apimachinery.pkg.version.Info",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceSubresources",
}

# Read by OpenAPI as one thing, written by Go as another: single names that are not a struct.
SPECIAL = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "Quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "IntOrString",
    META + "Time": "Time",
    META + "MicroTime": "MicroTime",
    META + "FieldsV1": "FieldsV1",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "Raw",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON": "Json",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray": "SchemaOrArray",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool": "SchemaOrBool",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray": "SchemaOrStrings",
}
SCALARS = {
    "std::string::String": "String",
    "bool": "Bool",
    "i32": "Int32",
    "i64": "Int64",
    "f64": "Double",
    "crate::ByteString": "Bytes",
    "crate::serde_json::Value": "Json",
}
EXTRA_SCALARS = {"quantity": "Quantity", "time": "Time", "string": "String", "bool": "Bool", "int32": "Int32", "int64": "Int64", "raw": "Raw", "any": "Json"}
WIRE = {"String": "string", "Bool": "bool", "Int32": "int32", "Int64": "int64", "Double": "double", "Bytes": "bytes"}

# ---------------------------------------------------------------- reading the crates


class Field:
    def __init__(self, name, elem, shape, required):
        self.name, self.elem, self.shape, self.required = name, elem, shape, required
        self.doc = ""
        self.number = 0
        self.embedded = []
        self.list = None  # "map", "set", "atomic"
        self.keys = ""
        self.patch = None  # "merge", "replace"
        self.patch_key = ""
        self.retain = False
        self.atomic = False
        self.pointer = False
        self.always = False


class Type:
    def __init__(self, name):
        self.name, self.doc, self.fields, self.gvk = name, "", [], None
        self.path = None


def rust_string(text):
    def one(match):
        c = match.group(1)
        return {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}[c]

    return re.sub(r"\\(.)", one, text)


def split_type(rust):
    """(element in Rust, shape) of a field's Rust type."""
    if m := re.fullmatch(r"Option<(.*)>", rust):
        rust = m.group(1)
    if m := re.fullmatch(r"std::boxed::Box<(.*)>", rust):
        rust = m.group(1)
    if m := re.fullmatch(r"std::collections::BTreeMap<std::string::String, std::vec::Vec<(.*)>>", rust):
        return m.group(1), "MapOfLists"
    if m := re.fullmatch(r"std::collections::BTreeMap<std::string::String, (.*)>", rust):
        return m.group(1), "Map"
    if m := re.fullmatch(r"std::vec::Vec<(.*)>", rust):
        return m.group(1), "List"
    return rust, "One"


def read_openapi(root):
    types, by_path = {}, {}
    for path in sorted(glob.glob(root + "/src/v1_36/**/*.rs", recursive=True)):
        source = open(path).read()
        m = re.search(r"// Generated from definition (\S+)", source)
        if not m or m.group(1) == "io.k8s.List" or "alpha" in path:  # alpha versions are never served
            continue
        ty = Type(m.group(1))
        struct = re.search(r"pub (?:struct|enum) (\w+)", source).group(1)
        module = os.path.relpath(os.path.dirname(path), root + "/src/v1_36").replace(os.sep, "::")
        ty.path = module.replace("::", "/") + "." + struct
        by_path[f"crate::{module}::{struct}"] = ty.name
        schema = source[source.find("json_schema!({") :]
        if m := re.search(r'^            "description": "((?:[^"\\]|\\.)*)",$', schema, re.M):
            ty.doc = rust_string(m.group(1))
        types[ty.name] = ty
        if ty.name in SPECIAL or ty.name in (META + "WatchEvent", META + "Patch"):
            continue
        if "impl crate::Resource for" in source:
            const = dict(re.findall(r'const (\w+): &\'static str = "(.*)";', source))
            ty.gvk = (const["GROUP"], const["VERSION"])
            ty.list_kind = const.get("LIST_KIND")
        body = re.search(r"pub struct \w+ \{(.*?)^\}", source, re.S | re.M)
        rust_types = dict(re.findall(r"^    pub (\w+): (.*),$", body.group(1), re.M)) if body else {}
        json_names = re.findall(r'^ +"([^"]+)" => Field::Key_(\w+),$', source, re.M)
        required = re.search(r'^            "required": \[(.*?)\]', schema, re.S | re.M)
        required = re.findall(r'"([^"]+)"', required.group(1)) if required else []
        if ty.gvk and ty.name != "io.k8s.api.core.v1.Event":  # the one object of which upstream wants metadata
            required = [name for name in required if name != "metadata"]
        if ty.name.startswith("io.k8s.api.core.") and struct in MAY_BE_EMPTY:
            required.remove("name")
        required += [full.rsplit(".", 1)[1] for full in ALSO_REQUIRED if full.rsplit(".", 1)[0] == ty.name]
        docs = {}
        for prop in re.finditer(r'^                "([^"]+)": (.*?)(?=^                [}"]|^            \})', schema, re.S | re.M):
            d = re.search(r'"description"(?:: |\.into\(\), )"((?:[^"\\]|\\.)*)"', prop.group(2))
            docs[prop.group(1)] = rust_string(d.group(1)) if d else ""
        for json, rust in json_names:
            if rust in ("api_version", "kind") and rust not in rust_types:
                field = Field(json, "std::string::String", "One", False)
            else:
                elem, shape = split_type(rust_types[rust])
                field = Field(json, elem, shape, json in required)
            field.doc = docs.get(json, "")
            merge = re.search(
                r"^        crate::merge_strategies::(list|map)::(\w+)\(\s*&mut self\." + re.escape(rust) + r",(.*?)^        \S",
                source,
                re.S | re.M,
            )
            if merge and merge.group(1) == "list":
                field.list = merge.group(2)
                if field.list == "map":
                    keys = re.findall(r"lhs\.(\w+) == rhs\.\w+", merge.group(3).split("&[", 1)[1].split("],")[0])
                    if keys:
                        field.keys = keys
                    else:  # by metadata.name: objects in an atomic list
                        field.list = "atomic"
            elif merge:
                field.atomic = merge.group(2) == "atomic"
            ty.fields.append(field)
    for ty in types.values():
        for field in ty.fields:
            if field.elem in SCALARS:
                field.elem = SCALARS[field.elem]
            else:
                name = by_path[field.elem]
                field.elem = SPECIAL.get(name, name)
    # List keys are Rust names: translate through the element's fields.
    for ty in types.values():
        for field in ty.fields:
            if field.list == "map":
                names = {f.name.lower(): f.name for f in types[field.elem].fields}
                field.keys = " ".join(names[k.replace("_", "").lower()] for k in field.keys)
    return types


def read_pb(root):
    """`module/path.Struct` → {lower-cased field name: (number, prost kind)}."""
    out = {}
    for path in glob.glob(root + "/src/**/mod.rs", recursive=True):
        module = os.path.relpath(os.path.dirname(path), root + "/src")
        for struct in re.finditer(r"^pub struct (\w+) \{(.*?)^\}", open(path).read(), re.S | re.M):
            fields = {}
            for attr, name, rust in re.findall(
                r"#\[prost\(([^\]]*)\)\]\s+pub (?:r#)?(\w+):\s*([^;]*?),\n", struct.group(2)
            ):
                number = int(re.search(r'tag = "(\d+)"', attr).group(1))
                kind = re.search(r'btree_map = "string, (\w+)"', attr)
                kind = "map " + kind.group(1) if kind else re.match(r"\w+", attr).group(0)
                message = re.findall(r"\w+", rust)[-1].lower()
                fields[name.replace("_", "").lower()] = (number, kind, message)
            out[f"{module}.{struct.group(1).lower()}"] = fields
    return out


# ---------------------------------------------------------------- joining


def short(ty, field):
    return f"{ty.name.rsplit('.', 1)[1]}.{field.name}"


def add_extra(types):
    for line in EXTRA_TYPES.strip().splitlines():
        name, fields = line.split(": ", 1)
        ty = types.setdefault(name, Type(name))
        ty.gvk = EXTRA_KINDS.get(name)
        ty.list_kind = EXTRA_LISTS.get(name)
        ty.doc = EXTRA_DOCS.get(name, ty.doc)
        for item in fields.split(", "):
            json, spec, number = item.split()
            required = spec.startswith("!")
            spec = spec.lstrip("!")
            shape = {"[]": "List", "{}": "Map"}.get(spec[:2], "One")
            spec = spec.removeprefix("[]").removeprefix("{}")
            elem = EXTRA_SCALARS.get(spec) or (spec if spec.startswith("io.") else META + spec)
            field = Field(json, elem, shape, required)
            field.number = int(number)
            field.doc = EXTRA_DOCS.get(f"{name}.{json}") or EXTRA_DOCS.get(name.rsplit(".", 1)[0] + "." + json, "")
            if name in EXTRA_LISTS and json in EXTRA_DOCS_OF_KINDS:
                field.doc = next(f.doc for f in types["io.k8s.api.core.v1.Pod"].fields if f.name == json)
            ty.fields.append(field)
    for ty in list(types.values()):
        if getattr(ty, "list_kind", None):
            name = ty.name.rsplit(".", 1)[0] + "." + ty.list_kind
            lst = types[name] = Type(name)
            kind = ty.name.rsplit(".", 1)[1]
            lst.gvk, lst.doc = ty.gvk, f"{ty.list_kind} is a list of {kind} objects."
            for json, elem, shape, number, doc in (
                ("apiVersion", "String", "One", 0, next(f.doc for f in ty.fields if f.name == "apiVersion")),
                ("kind", "String", "One", 0, next(f.doc for f in ty.fields if f.name == "kind")),
                ("metadata", META + "ListMeta", "One", 1, "Standard list metadata."),
                ("items", ty.name, "List", 2, f"The {kind} objects."),
            ):
                field = Field(json, elem, shape, json == "items")
                field.number, field.doc = 0 if ty.name in EXTRA_LISTS else number, doc
                lst.fields.append(field)


def find_number(pb, module, struct, json):
    """(numbers of the embedding messages, number, prost kind) of a JSON field, or None."""
    fields = pb.get(f"{module}.{struct}", {})
    name = json.lower().lstrip("$").replace("-", "")
    if name in fields:
        return [], fields[name][0], fields[name][1]
    for number, kind, message in fields.values():
        # Go embeds structs: one JSON object, but a message of its own.
        if kind == "message" and message in EMBEDDED:
            if found := find_number(pb, module, message, json):
                return [number, *found[0]], *found[1:]
    return None


def add_numbers(types, pb):
    """Sets the protobuf numbers; returns what contradicts or is not known."""
    missing = []
    for ty in types.values():
        if ty.path is None or ty.name in NO_PROTOBUF:
            continue
        module, struct = ty.path.lower().split(".")
        versions = [module] + [os.path.dirname(module) + v for v in ("/v1", "/v1beta2", "/v1beta1", "/v1alpha3")]
        for field in ty.fields:
            if field.name in ("apiVersion", "kind") and (ty.gvk or ty.name == META + "DeleteOptions"):
                continue
            found = next(filter(None, (find_number(pb, m, struct, field.name) for m in versions)), None)
            if extra := NUMBERS.get(short(ty, field)):
                assert not found, f"{ty.name} {field.name} is known now"
                field.number = extra
                continue
            if not found:
                missing.append(f"{ty.name} {field.name}: no protobuf number")
                continue
            field.embedded, field.number, kind = found
            want = WIRE.get(field.elem, "message")
            if field.shape == "Map":
                want = "map " + want
            elif field.shape == "MapOfLists":
                want = "map message"
            if want != kind:
                missing.append(f"{ty.name} {field.name}: {want} in OpenAPI, {kind} in protobuf")
    return missing


def add_go_form(field, names):
    """Whether Go holds the field as a pointer, and whether it writes it always."""
    if field.shape != "One":
        return
    if field.elem in ("Bool", "Int32", "Int64", "Double"):
        field.pointer = not field.required and (not names & VALUE_SCALARS or bool(names & POINTER_EXCEPTIONS))
        field.always = field.required or bool(names & ALWAYS_WRITTEN)
    elif field.elem in ("String", "Quantity"):
        field.pointer = bool(names & POINTER_STRINGS)
        field.always = bool(names & ALWAYS_WRITTEN)
    elif field.elem == "IntOrString":
        field.pointer = not field.required and not names & VALUE_SCALARS
    elif field.elem.startswith("io."):
        value = not names & POINTER_STRUCTS if field.required else bool(names & VALUE_STRUCTS)
        field.pointer, field.always = not value, value


def add_strategies(types):
    for ty in types.values():
        for field in ty.fields:
            name = short(ty, field)
            full = f"{ty.name}.{field.name}"
            if name in LIST_MAP_KEYS and ty.name.startswith("io.k8s.api."):
                assert field.shape == "List"
                field.list, field.keys = "map", LIST_MAP_KEYS[name]
            if field.list == "map":
                field.patch, field.patch_key = "merge", field.keys.split()[0]
            if name in ATOMIC_BUT_MERGED:
                field.list, field.keys, field.patch, field.patch_key = "atomic", "", "merge", ATOMIC_BUT_MERGED[name]
            if full in MAP_BUT_REPLACED:
                assert field.list == "map", full
                field.patch, field.patch_key = None, ""
            if name in MERGED_SETS:
                assert field.list == "set"
                field.patch = "merge"
            if name in REPLACED:
                field.patch = "replace"
            if name in RETAIN_KEYS:
                field.retain = True
            add_go_form(field, {field.name, name, full})
            if field.elem in ATOMIC_TYPES and field.shape == "One" and name not in GRANULAR_FIELDS:
                field.atomic = True


# ---------------------------------------------------------------- writing


def quoted(text):
    return '"' + text + '"'


def write(types, root):
    names = sorted(types)
    index = {name: i for i, name in enumerate(names)}
    merges, rows, docs = {}, [], []
    for name in names:
        ty = types[name]
        docs.append(ty.doc)
        fields = []
        for field in sorted(ty.fields, key=lambda f: f.name):
            docs.append(field.doc)
            elem = f"T({index[field.elem]})" if field.elem in index else f"Elem::{field.elem}"
            flags = "".join(
                letter
                for letter, on in (
                    ("R", field.required),
                    ("P", field.pointer),
                    ("A", field.always),
                    ("W", field.atomic),
                )
                if on
            )
            flags = " | ".join(flags) or "0"
            key = (field.list, field.keys, field.patch, field.patch_key, field.retain)
            merge = merges.setdefault(key, len(merges))
            outer = (field.embedded + [0, 0])[:2]
            fields.append(
                f'f({quoted(field.name)}, {elem}, Shape::{field.shape}, {field.number}, {outer}, {flags}, {merge})'
            )
        group, version = ty.gvk or ("", "")
        rows.append(
            f'    t("{name}", "{group}", "{version}", {str(bool(ty.gvk)).lower()}, '
            f'{str(name in ATOMIC_TYPES).lower()}, {special_elem(name)}, &['
            + "".join(f"\n        {x}," for x in fields)
            + ("\n    " if fields else "")
            + "]),\n"
        )
    out = [
        "//! Generated by tools/schema-gen.py from k8s-openapi and k8s-pb: change that, not this.\n\n",
        "use super::{Elem, Field, ListKind, Merge, PatchKind, Shape, Type};\n\n",
        "const R: u8 = Field::REQUIRED;\nconst P: u8 = Field::POINTER;\n",
        "const A: u8 = Field::ALWAYS;\nconst W: u8 = Field::ATOMIC;\n\n",
        "const fn f(name: &'static str, elem: Elem, shape: Shape, number: u16, embedded: [u8; 2], flags: u8, merge: u8)"
        " -> Field {\n    Field { name, elem, shape, number, embedded, flags, merge }\n}\n\n",
        "const fn t(\n    name: &'static str,\n    group: &'static str,\n    version: &'static str,\n"
        "    is_kind: bool,\n    atomic: bool,\n    special: Option<Elem>,\n    fields: &'static [Field],\n) -> Type {\n"
        "    Type { name, group, version, is_kind, atomic, special, fields }\n}\n\n",
        "#[expect(non_snake_case, reason = \"reads as a variant in the rows\")]\n"
        "const fn T(index: u16) -> Elem {\n    Elem::Type(index)\n}\n\n",
        "pub(super) static MERGES: &[Merge] = &[\n",
    ]
    for list_kind, keys, patch, patch_key, retain in merges:
        kind = {None: "None", "map": "Map", "set": "Set", "atomic": "Atomic"}[list_kind]
        patch = {None: "None", "merge": "Merge", "replace": "Replace"}[patch]
        keys = ", ".join(quoted(k) for k in keys.split()) if keys else ""
        out.append(
            f"    Merge {{ list: ListKind::{kind}, keys: &[{keys}], patch: PatchKind::{patch}, "
            f'patch_key: "{patch_key}", retain_keys: {str(retain).lower()} }},\n'
        )
    out.append("];\n\n/// All types, sorted by name.\npub static TYPES: &[Type] = &[\n")
    out += rows + ["];\n\n"]
    digest = hashlib.sha256("".join(out + docs).encode()).hexdigest()
    out.append(f'/// Changes with the table and with the descriptions.\npub(super) const FINGERPRINT: &str = "{digest}";\n')
    with open(root + "/src/kinds/schema/table.rs", "w") as file:
        file.write("".join(out))
    # Texts that stand in several versions are written once; later ones refer to the first by its number.
    first = {}
    for i, doc in enumerate(docs):
        if doc and first.setdefault(doc, i) != i:
            docs[i] = f"\1{first[doc]}"
    assert not any("\0" in doc for doc in docs)
    with open(root + "/src/kinds/schema/docs.z", "wb") as file:
        file.write(zlib.compress("\0".join(docs).encode(), 9))


def special_elem(name):
    return f"Some(Elem::{SPECIAL[name]})" if name in SPECIAL else "None"


def main():
    registries = glob.glob(os.path.expanduser("~/.cargo/registry/src/*/"))
    registry = next(r for r in registries if os.path.isdir(r + K8S_OPENAPI) and os.path.isdir(r + K8S_PB))
    types = read_openapi(registry + K8S_OPENAPI)
    add_extra(types)
    missing = add_numbers(types, read_pb(registry + K8S_PB))
    unexpected = [line for line in missing if "ListMeta shardInfo" not in line]
    if unexpected:
        sys.exit("\n".join(unexpected))
    add_strategies(types)
    write(types, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    print(f"{len(types)} types, {sum(len(t.fields) for t in types.values())} fields")


if __name__ == "__main__":
    main()
