variable "project" {
  type = string
}

variable "name" {
  type = string
}

variable "workload_pool" {
  type = string
}

variable "namespace" {
  description = "Kubernetes' namespace of the release `darkroom`."
  type        = string
  default     = "darkroom"
}
